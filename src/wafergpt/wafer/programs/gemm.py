"""Matrix products C = A B on a square mesh: SUMMA, Cannon's algorithm, and MeshGEMM's two-hop shifts.

A [M, K], B [K, N] are cut into P x P tiles. Every PE adds P products of tiles to its tile of C, one
multiply-accumulate call per column of A's tile and column of B's: float32 order is the steps' order, within a
step ascending k; a product is rounded before it is added. The expected C is in `ordered_product`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.operands import Array, Color, Dsd, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Launch, Machine
from wafergpt.wafer.programs.lines import Stopwatch, measured_cycles, place, route_messages
from wafergpt.wafer.programs.tiles import BARE, Costs, join, split


@dataclass(frozen=True, kw_only=True)
class GemmRun:
    """c [M, N]; cycles from the first PE's start to the last one's end; the machine for further questions."""

    c: NDArray[Any]
    cycles: int
    launch: Launch
    machine: Machine


@dataclass(frozen=True)
class _Tiles:
    """Arrays of a PE: tiles of A (m x k), B (k x n), C (m x n) and a second buffer for the operands."""

    m: int
    k: int
    n: int
    a: Array
    b: Array
    c: Array
    a2: Array
    b2: Array


def _arrays(code: Code, shape: tuple[int, int, int], edge: int, type: str) -> _Tiles:
    if any(size % edge for size in shape):
        raise ProgramError(f"{shape} does not divide into {edge} x {edge} tiles")
    m, k, n = (size // edge for size in shape)
    c = code.array("c", m * n, type, bank=2)
    a, a2 = code.array("a", m * k, type, bank=0), code.array("a2", m * k, type, bank=0)
    b, b2 = code.array("b", k * n, type), code.array("b2", k * n, type)
    return _Tiles(m, k, n, a, b, c, a2, b2)


def _multiply(code: Code, tiles: _Tiles, a_base: Reg, b_base: Reg, call_cycles: int) -> None:
    """C += A B for the tiles whose byte addresses are in the registers."""
    size = isa.TYPE_BYTES[tiles.a.type]
    column = code.view(tiles.a, 0, tiles.m)
    target = code.view(tiles.c, 0, tiles.m)
    code.set(column, "base", a_base)
    with code.regs(2) as (start, at):
        code.copy(start, b_base)
        with code.loop(tiles.k):
            code.set(target, "base", tiles.c.address)
            code.copy(at, start)
            with code.loop(tiles.n), code.regs(1) as (factor,):
                code.load_at(factor, at, tiles.b.type)
                if call_cycles:
                    code.delay(call_cycles)
                code.fmac(target, column, factor, target)
                code.advance(target, tiles.m)
                code.iadd(at, at, tiles.k * size)
            code.advance(column, tiles.m)
            code.iadd(start, start, size)


# SUMMA ---------------------------------------------------------------------------------------------------


def _route_turns(program: Program, axis: str, color: Color) -> None:
    """Each PE of a line broadcasts in its turn: three switch positions, moved on by control wavelets."""
    size = program.width
    towards, back = ("E", "W") if axis == "x" else ("S", "N")
    if size == 1:
        return
    program.route(color, place(axis, 0), ("R", towards), (towards, "R"))
    program.route(color, place(axis, size - 1), (back, "R"), ("R", back))
    if size > 2:
        middle = ((back, "R" + towards), ("R", towards + back), (towards, "R" + back))
        program.route(color, place(axis, slice(1, size - 1)), *middle)


def _broadcast_turn(
    code: Code, where: tuple[Reg, Reg], last: int, parts: tuple[Color, Array, Array, int]
) -> None:
    """One step of a row's or column's broadcast on a microthread; where = (own position, step)."""
    color, tile, buffer, thread = parts
    position, step = where
    type = tile.type.name.lower()
    with code.if_(position, "==", step):
        code.mov(code.send(color, tile.length, type), tile, thread=thread)
    with code.if_(position, "!=", step):
        code.mov(buffer, code.recv(color, tile.length, type), thread=thread)


def _end_turn(code: Code, where: tuple[Reg, Reg], last: int, color: Color, thread: int) -> None:
    """The sender's control wavelet: its own router and the next one go on; after the last all start anew."""
    position, step = where
    with code.if_(position, "==", step):
        with code.if_(step, "<", last):
            code.control(color, isa.CONTROL_ADVANCE, isa.CONTROL_ADVANCE, thread=thread)
        with code.if_(step, ">=", last):
            code.control(color, isa.CONTROL_RESET_ALL, thread=thread)


def _select(code: Code, target: Reg, where: tuple[Reg, Reg], own: Array, buffer: Array) -> None:
    """target = address of what this PE multiplies in the step: its own tile if it was the sender."""
    code.li(target, buffer.address)
    with code.if_(where[0], "==", where[1]):
        code.li(target, own.address)


def summa(
    a: NDArray[Any],
    b: NDArray[Any],
    edge: int,
    *,
    type: str = "f32",
    costs: Costs = BARE,
    engine: str = "auto",
    threads: int = 1,
) -> GemmRun:
    """SUMMA on edge x edge PEs, as the SDK's example has it: in step s the PEs of column s broadcast their
    tiles of A along the rows, those of row s their tiles of B along the columns, then all multiply."""
    program = Program(edge, edge, timing=costs.timing())
    row, column = program.color("row"), program.color("column")
    _route_turns(program, "x", row)
    _route_turns(program, "y", column)
    code = program.role("worker")
    tiles = _arrays(code, (a.shape[0], a.shape[1], b.shape[1]), edge, type)
    px, py, stopwatch = code.param("x"), code.param("y"), Stopwatch(code)
    with code.task("main"):
        with stopwatch.time(), code.regs(4) as (x, y, a_base, b_base):
            code.load(x, px)
            code.load(y, py)
            with code.loop(edge) as step:
                if costs.step_cycles:
                    code.delay(costs.step_cycles)
                if edge > 1:
                    _broadcast_turn(code, (x, step), edge - 1, (row, tiles.a, tiles.a2, 1))
                    _broadcast_turn(code, (y, step), edge - 1, (column, tiles.b, tiles.b2, 2))
                    _end_turn(code, (x, step), edge - 1, row, 1)
                    _end_turn(code, (y, step), edge - 1, column, 2)
                _select(code, a_base, (x, step), tiles.a, tiles.a2)
                _select(code, b_base, (y, step), tiles.b, tiles.b2)
                code.wait(1)
                code.wait(2)
                _multiply(code, tiles, a_base, b_base, costs.call_cycles)
        code.done()
    machine = Machine(program, engine=engine, threads=threads)
    machine.memcpy_h2d("x", np.broadcast_to(np.arange(edge)[None, :], (edge, edge)))
    machine.memcpy_h2d("y", np.broadcast_to(np.arange(edge)[:, None], (edge, edge)))
    return _run(machine, split(a, edge, edge), split(b, edge, edge), tiles.m)


# Shifts --------------------------------------------------------------------------------------------------


def neighbours_in_turn(edge: int) -> list[int]:
    """Cannon's ring: PE i passes its tile on to PE i - 1, the first to the last (over the whole line)."""
    return list(range(edge))


def interleaved(edge: int) -> list[int]:
    """MeshGEMM's ring over a line: 0, 2, 4, ..., 5, 3, 1, so that a shift goes two hops at most."""
    return [*range(0, edge, 2), *reversed(range(1, edge, 2))]


def _shift(
    program: Program, code: Code, axis: str, ring: list[int], tile: Array
) -> tuple[Dsd, Dsd, dict[str, NDArray[np.int32]]]:
    """Descriptors that pass a tile on along the ring, and the colors that the host sets per PE."""
    messages = [(pe, ring[place_ - 1]) for place_, pe in enumerate(ring)]
    colors = route_messages(program, axis, messages, f"shift {axis}")
    sends, hears = np.zeros(len(ring), np.int32), np.zeros(len(ring), np.int32)
    for (source, target), color in zip(messages, colors, strict=True):
        sends[source], hears[target] = color.index, color.index
    names = {f"send {axis}": sends, f"hear {axis}": hears}
    type = tile.type.name.lower()
    out, into = code.send(colors[0], tile.length, type), code.recv(colors[0], tile.length, type)
    for name, dsd in zip(names, (out, into), strict=True):
        word = code.param(name)
        with code.regs(1) as (register,):
            code.load(register, word)
            code.set(dsd, "color", register)
    return out, into, names


def cannon(
    a: NDArray[Any],
    b: NDArray[Any],
    edge: int,
    *,
    ring: list[int] | None = None,
    type: str = "f32",
    costs: Costs = BARE,
    engine: str = "auto",
) -> GemmRun:
    """Cannon's algorithm on edge x edge PEs, `ring` being the order in which tiles go round (`interleaved`
    makes it MeshGEMM). The host loads the tiles skewed; they are passed on while the PEs multiply."""
    order = neighbours_in_turn(edge) if ring is None else ring
    program = Program(edge, edge, timing=costs.timing())
    code = program.role("worker")
    tiles = _arrays(code, (a.shape[0], a.shape[1], b.shape[1]), edge, type)
    stopwatch = Stopwatch(code)
    rows: dict[str, NDArray[np.int32]] = {}
    columns: dict[str, NDArray[np.int32]] = {}
    with code.task("main"):
        if edge > 1:
            a_out, a_in, rows = _shift(program, code, "x", order, tiles.a)
            b_out, b_in, columns = _shift(program, code, "y", order, tiles.b)
        with stopwatch.time(), code.regs(4) as (a_now, a_next, b_now, b_next):
            for register, array in (
                (a_now, tiles.a),
                (a_next, tiles.a2),
                (b_now, tiles.b),
                (b_next, tiles.b2),
            ):
                code.li(register, array.address)
            views = [code.view(array) for array in (tiles.a, tiles.a2, tiles.b, tiles.b2)]
            with code.loop(edge) as step:
                if costs.step_cycles:
                    code.delay(costs.step_cycles)
                if edge > 1:
                    with code.if_(step, "<", edge - 1):
                        for view, register in zip(views, (a_now, a_next, b_now, b_next), strict=True):
                            code.set(view, "base", register)
                        code.mov(a_out, views[0], thread=1)
                        code.mov(views[1], a_in, thread=2)
                        code.mov(b_out, views[2], thread=3)
                        code.mov(views[3], b_in, thread=4)
                _multiply(code, tiles, a_now, b_now, costs.call_cycles)
                for thread in (1, 2, 3, 4):
                    code.wait(thread)
                _swap(code, a_now, a_next)
                _swap(code, b_now, b_next)
        code.done()
    machine = Machine(program, engine=engine)
    for name, line in rows.items():
        machine.memcpy_h2d(name, np.broadcast_to(line[None, :], (edge, edge)))
    for name, line in columns.items():
        machine.memcpy_h2d(name, np.broadcast_to(line[:, None], (edge, edge)))
    a_tiles, b_tiles = _skewed(split(a, edge, edge), split(b, edge, edge), order)
    return _run(machine, a_tiles, b_tiles, tiles.m)


def mesh_gemm(
    a: NDArray[Any],
    b: NDArray[Any],
    edge: int,
    *,
    type: str = "f32",
    costs: Costs = BARE,
    engine: str = "auto",
) -> GemmRun:
    """MeshGEMM: Cannon's algorithm on the interleaved ring."""
    return cannon(a, b, edge, ring=interleaved(edge), type=type, costs=costs, engine=engine)


def _swap(code: Code, one: Reg, other: Reg) -> None:
    for target, source in ((one, other), (other, one), (one, other)):
        code.integer("xor", target, target, source)


def _inner_index(ring: list[int], step: int) -> NDArray[np.int64]:
    """[y, x]: which tile of k PE (x, y) works on: its ring places' sum, plus the step."""
    edge = len(ring)
    seat = np.zeros(edge, np.int64)
    seat[ring] = np.arange(edge)
    return (seat[:, None] + seat[None, :] + step) % edge


def _skewed(a: NDArray[Any], b: NDArray[Any], ring: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    inner = _inner_index(ring, 0)
    y, x = np.indices(inner.shape)
    return a[y, inner], b[inner, x]


def _run(machine: Machine, a: NDArray[Any], b: NDArray[Any], tile_rows: int) -> GemmRun:
    machine.memcpy_h2d("a", a)
    machine.memcpy_h2d("b", b)
    launch = machine.launch("main", max_cycles=1 << 29)
    c = join(machine.memcpy_d2h("c"), tile_rows)
    return GemmRun(c=c, cycles=measured_cycles(machine), launch=launch, machine=machine)


def ordered_product(
    a: NDArray[Any], b: NDArray[Any], edge: int, ring: list[int] | None = None
) -> NDArray[Any]:
    """A B summed as the mesh does, in A's type: SUMMA's order, or that of the tiles going round a `ring`."""
    k = a.shape[1] // edge
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    rows, columns = a.shape[0] // edge, b.shape[1] // edge
    for step in range(edge):
        inner = np.full((edge, edge), step) if ring is None else _inner_index(ring, step)
        tile = np.repeat(np.repeat(inner, rows, axis=0), columns, axis=1)
        y, x = np.indices(tile.shape)
        for i in range(k):
            product = a[y, tile * k + i].astype(np.float32) * b[tile * k + i, x].astype(np.float32)
            c = (c.astype(np.float32) + product).astype(a.dtype)
    return c
