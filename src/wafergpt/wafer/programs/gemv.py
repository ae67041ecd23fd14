"""Matrix-vector products y = W x with an all-reduce along the rows: chain or K-tree (K = 2).

W [M, K] is cut into height x width tiles, x into width parts (each held by a whole column), y into height
parts (each held by a whole row afterwards). A PE makes one multiply-accumulate call per column of its tile;
the partial sums are added in the order of the tree (`ordered_product`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.operands import Array
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.collectives import Broadcast, Reduce
from wafergpt.wafer.programs.lines import Stopwatch, measured_cycles
from wafergpt.wafer.programs.tiles import split
from wafergpt.wafer.programs.trees import Tree, ordered_sum, two_phase


@dataclass(frozen=True, kw_only=True)
class GemvRun:
    """y [M]; cycles from the first PE's start to the last one's end."""

    y: NDArray[Any]
    cycles: int
    machine: Machine


def multiply_column_by_column(code: Code, w: Array, x: Array, y: Array) -> None:
    """y = W x for a tile w (column by column), x and y in memory: six cycles per column and the elements'."""
    column = code.view(w, 0, y.length)
    code.mov(y, 0.0)
    with code.loop(x.length) as k, code.regs(1) as (factor,):
        code.load(factor, x, k)
        code.fmac(y, column, factor, y)
        code.advance(column, y.length)
    code.set(column, "base", w.address)


def gemv(
    w: NDArray[Any],
    x: NDArray[Any],
    width: int,
    height: int,
    *,
    tree: Tree | None = None,
    type: str = "f32",
    engine: str = "auto",
) -> GemvRun:
    """w [M, K], x [K] on width x height PEs; rows are summed by `tree` (two-phase: a K-tree, K = 2)."""
    chosen = two_phase(width) if tree is None else tree
    m, k = w.shape[0] // height, w.shape[1] // width
    program = Program(width, height)
    code = program.role("worker")
    y = code.array("y", m, type)
    tile, part = code.array("w", m * k, type), code.array("x", k, type)
    stopwatch = Stopwatch(code)
    reduce = Reduce(program, "x", chosen, "reduce") if width > 1 else None
    spread = Broadcast(program, "x", "broadcast") if width > 1 else None
    with code.task("main"):
        if reduce and spread:
            sums, copies = reduce.emitter(code, m, type), spread.emitter(code, m, type)
            reduce.prepare(code, sums)
        with stopwatch.time():
            multiply_column_by_column(code, tile, part, y)
            if reduce and spread:
                reduce.emit(code, sums, y)
                spread.emit(code, copies, y)
        code.done()
    machine = Machine(program, engine=engine)
    if reduce and spread:
        reduce.load(machine)
        spread.load(machine)
    machine.memcpy_h2d("w", split(w, height, width))
    machine.memcpy_h2d("x", x.reshape(1, width, k))
    machine.launch("main")
    result = machine.memcpy_d2h("y")
    assert (result == result[:, :1]).all()
    return GemvRun(y=result[:, 0].reshape(-1), cycles=measured_cycles(machine), machine=machine)


def ordered_product(w: NDArray[Any], x: NDArray[Any], tree: Tree) -> NDArray[Any]:
    """W x summed as the mesh does in float32: ascending k within a PE, then by the tree."""
    width = len(tree)
    k = w.shape[1] // width
    partial = np.zeros((width, w.shape[0]), np.float32)
    for pe in range(width):
        for i in range(pe * k, (pe + 1) * k):
            partial[pe] = w[:, i] * x[i] + partial[pe]
    return ordered_sum(tree, partial)
