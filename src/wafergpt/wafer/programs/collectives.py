"""Broadcast, reduce and all-reduce along rows or columns, to be used inside any program.

A collective lays its routes once, and any number of roles emit it: what differs per PE (colors, number of
children) are parameters that `load` copies to the PEs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.operands import Array, Dsd
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.lines import Stopwatch, measured_cycles, place, route_broadcast, route_messages
from wafergpt.wafer.programs.trees import Tree, children

_LEAF, _FUSED, _ROOT = 0, 1, 2  # how a PE ends: sends its own vector, sends the last sum, keeps it


@dataclass(frozen=True)
class Emitted:
    """What a role needs for one length of vectors: its parameter words and descriptors."""

    words: Array  # n plain receives, end, color to send on, color of the last child, colors of the plain ones
    plain: tuple[Dsd, ...]
    last: Dsd
    send: Dsd


class Reduce:
    """Sums (or another operation of two operands) along every row ("x") or column ("y") into PE 0 of it, by a
    tree; a forest (several -1) sums into each of its roots. Float32 order: a PE takes in its children in
    ascending order; see `trees.ordered_sum`."""

    def __init__(self, program: Program, axis: str, tree: Tree, name: str) -> None:
        size = program.width if axis == "x" else program.height
        if len(tree) != size:
            raise ValueError(f"a tree of {len(tree)} PEs on a line of {size}")
        self.axis, self.tree, self.name = axis, tree, name
        messages = [(pe, parent) for pe, parent in enumerate(tree) if parent >= 0]
        colors = route_messages(program, axis, messages, name)
        self._color = {pe: color for (pe, _), color in zip(messages, colors, strict=True)}
        self._children = children(tree)
        self._any = next(iter(self._color.values()), None)
        self.n_plain = max(len(each) - (tree[pe] >= 0) for pe, each in enumerate(self._children))

    def emitter(self, code: Code, length: int, type: str = "f32") -> Emitted:
        """Parameters and descriptors in `code` for vectors of `length` elements; emit `prepare` once for
        each. All emitters of a role share the parameters."""
        assert self._any is not None
        name = f"{self.name} words"
        words = code.arrays.get(name) or code.array(name, 4 + max(1, self.n_plain), "i32")
        plain = tuple(code.recv(self._any, length, type) for _ in range(max(0, self.n_plain)))
        return Emitted(words, plain, code.recv(self._any, length, type), code.send(self._any, length, type))

    def prepare(self, code: Code, emitted: Emitted) -> None:
        """Instructions that set the descriptors' colors from the PE's parameters (once per launch)."""
        with code.regs(1) as (color,):
            code.load(color, emitted.words, 2)
            code.set(emitted.send, "color", color)
            code.load(color, emitted.words, 3)
            code.set(emitted.last, "color", color)
            for place, dsd in enumerate(emitted.plain):
                code.load(color, emitted.words, 4 + place)
                code.set(dsd, "color", color)

    def emit(self, code: Code, emitted: Emitted, x: Array | Dsd, operation: Alu = Alu.ADD) -> None:
        """x = sum of x over the line, in the tree's root; elsewhere x holds a partial sum afterwards."""
        with code.regs(2) as (n_plain, end):
            code.load(n_plain, emitted.words, 0)
            code.load(end, emitted.words, 1)
            for place, dsd in enumerate(emitted.plain):
                with code.if_(n_plain, ">=", place + 1):
                    code.vector(operation, x, x, dsd)
            with code.if_(end, "==", _FUSED):
                code.vector(operation, emitted.send, x, emitted.last)
            with code.if_(end, "==", _LEAF):
                code.mov(emitted.send, x)

    def member(self, pe: int) -> tuple[tuple[int, ...], int, int]:
        """What PE `pe` of the line does: colors of the plain receives, of the fused one, of the send (-1:
        none). PEs with equal members can share a role that `emit_member` writes."""
        sent = [self._color[child].index for child in self._children[pe]]
        if self.tree[pe] < 0:
            return tuple(sent), -1, -1
        return tuple(sent[:-1]), sent[-1] if sent else -1, self._color[pe].index

    def emit_member(self, code: Code, pe: int, x: Array, operation: Alu = Alu.ADD) -> None:
        """As `emit`, for a role of its own: no parameters, no branches."""
        sent = self._children[pe]
        for child in sent if self.tree[pe] < 0 else sent[:-1]:
            code.vector(operation, x, x, code.recv(self._color[child], x.length, x.type.name.lower()))
        if self.tree[pe] < 0:
            return
        out = code.send(self._color[pe], x.length, x.type.name.lower())
        if sent:
            last = code.recv(self._color[sent[-1]], x.length, x.type.name.lower())
            code.vector(operation, out, x, last)
        else:
            code.mov(out, x)

    def load(self, machine: Machine) -> None:
        """Copy the parameters of all PEs (host)."""
        height, width = machine.image.height, machine.image.width
        rows = np.array([self._words(pe) for pe in range(len(self.tree))], np.int32)
        line = rows[None, :, :] if self.axis == "x" else rows[:, None, :]
        machine.memcpy_h2d(f"{self.name} words", np.broadcast_to(line, (height, width, rows.shape[1])))

    def _words(self, pe: int) -> list[int]:
        assert self._any is not None
        sent = self._children[pe]
        is_root = self.tree[pe] < 0
        plain = sent if is_root else sent[:-1]
        end = _ROOT if is_root else _FUSED if sent else _LEAF
        send = self._any if is_root else self._color[pe]
        last = self._color[sent[-1]] if sent else self._any
        colors = [self._color[child].index for child in plain]
        colors += [self._any.index] * (max(1, self.n_plain) - len(colors))
        return [len(plain), end, send.index, last.index, *colors]


class Broadcast:
    """Copies a vector from PE `root` of every row or column, or of every `group` PEs of it, to the others."""

    def __init__(self, program: Program, axis: str, name: str, root: int = 0, *, group: int = 0) -> None:
        self.axis, self.root, self.name, self.group = axis, root, name, group
        self._color = route_broadcast(program, axis, root, name, group=group)

    def emitter(self, code: Code, length: int, type: str = "f32") -> tuple[Array, Dsd, Dsd]:
        """The parameter (1 at the root; all emitters of a role share it) and descriptors in `code`."""
        name = f"{self.name} root"
        word = code.arrays.get(name) or code.param(name)
        return word, code.recv(self._color, length, type), code.send(self._color, length, type)

    def emit(self, code: Code, emitted: tuple[Array, Dsd, Dsd], x: Array | Dsd) -> None:
        """x = the root's x."""
        word, recv, send = emitted
        with code.regs(1) as (is_root,):
            code.load(is_root, word)
            with code.if_(is_root, "!=", 0):
                code.mov(send, x)
            with code.if_(is_root, "==", 0):
                code.mov(x, recv)

    def emit_member(self, code: Code, pe: int, x: Array) -> None:
        """As `emit`, for a role that holds the root only or no root."""
        if pe == self.root:
            code.mov(code.send(self._color, x.length, x.type.name.lower()), x)
        else:
            code.mov(x, code.recv(self._color, x.length, x.type.name.lower()))

    def load(self, machine: Machine) -> None:
        """Copy the parameters of all PEs (host)."""
        height, width = machine.image.height, machine.image.width
        line = np.arange(width)[None, :] if self.axis == "x" else np.arange(height)[:, None]
        within = line % self.group if self.group else line
        machine.memcpy_h2d(f"{self.name} root", np.broadcast_to(within == self.root, (height, width)))


@dataclass(frozen=True, kw_only=True)
class CollectiveRun:
    """values [height, width, n]: what the PEs hold afterwards; cycles: from first start to last end."""

    values: NDArray[np.float32]
    cycles: int


def run_broadcast(values: NDArray[np.float32], *, axis: str = "x", engine: str = "auto") -> CollectiveRun:
    """Broadcast PE 0's vector along every row or column; values [height, width, n]."""
    height, width, n = values.shape
    program = Program(width, height)
    broadcast = Broadcast(program, axis, "broadcast")
    size = width if axis == "x" else height
    for pe, positions in enumerate((slice(0, 1), slice(1, size))):
        code = program.role(f"member {pe}", place(axis, positions))
        x, stopwatch = code.array("x", n), Stopwatch(code)
        with code.task("main"):
            with stopwatch.time():
                broadcast.emit_member(code, pe, x)
            code.done()
    return _run(Machine(program, engine=engine), values)


def run_broadcast_2d(values: NDArray[np.float32], *, engine: str = "auto") -> CollectiveRun:
    """Broadcast PE (0, 0)'s vector to the whole mesh: down the first column, and from it along the rows."""
    height, width, n = values.shape
    program = Program(width, height)
    color = program.color("broadcast")
    east = "E" if width > 1 else ""
    program.route(color, (slice(1, None), slice(None)), ("W", "RE"))
    program.route(color, (width - 1, slice(None)), ("W", "R"))
    program.route(color, (0, slice(None)), ("N", "RS" + east))
    program.route(color, (0, height - 1), ("N", "R" + east))
    program.route(color, (0, 0), ("R", ("S" if height > 1 else "") + east))
    root = np.zeros((height, width), np.bool_)
    root[0, 0] = True
    for where in (root, ~root):
        code = program.role("root" if where[0, 0] else "other", where)
        x, stopwatch = code.array("x", n), Stopwatch(code)
        with code.task("main"):
            with stopwatch.time():
                if where[0, 0]:
                    code.mov(code.send(color, n), x)
                else:
                    code.mov(x, code.recv(color, n))
            code.done()
    return _run(Machine(program, engine=engine), values)


def run_reduce(
    values: NDArray[np.float32],
    tree: Tree,
    *,
    axis: str = "x",
    all_reduce: bool = False,
    engine: str = "auto",
) -> CollectiveRun:
    """Sum the vectors of every row or column into its PE 0 (`all_reduce`: into all of it).

    values [height, width, n]
    """
    height, width, n = values.shape
    program = Program(width, height)
    reduce = Reduce(program, axis, tree, "reduce")
    broadcast = Broadcast(program, axis, "broadcast") if all_reduce else None
    members: dict[object, list[int]] = {}
    for pe in range(len(tree)):
        members.setdefault(reduce.member(pe), []).append(pe)
    for pes in members.values():
        line = np.zeros(len(tree), np.bool_)
        line[pes] = True
        where = np.broadcast_to(line[None, :] if axis == "x" else line[:, None], (height, width))
        code = program.role(f"member {pes[0]}", where)
        x, stopwatch = code.array("x", n), Stopwatch(code)
        with code.task("main"):
            with stopwatch.time():
                reduce.emit_member(code, pes[0], x)
                if broadcast:
                    broadcast.emit_member(code, pes[0], x)
            code.done()
    return _run(Machine(program, engine=engine), values)


def _run(machine: Machine, values: NDArray[np.float32]) -> CollectiveRun:
    machine.memcpy_h2d("x", values)
    machine.launch("main")
    return CollectiveRun(values=machine.memcpy_d2h("x"), cycles=measured_cycles(machine))
