"""Attention of one new token over a key-value cache that is spread over the columns of the mesh.

Row y holds the elements y n .. (y + 1) n of q, k and v (n = d_model / height); the rows of a head follow each
other. Column x holds a run of positions: PE (x, y) has n elements of k and n of v for each of them.

**Shift.** New keys and values enter at column 0. Token t lets column t mod width grow by one position: every
column before it passes its oldest position to its eastern neighbour. So all columns hold equal shares to
within one, the oldest in the east, and nothing crosses more than one link.

Scores are partial sums over n elements, summed over the rows of a head; then softmax over the row, whose
denominator travels with the weighted sum of v in one all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.operands import Array, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.allreduce import AllReduce
from wafergpt.wafer.programs.lines import route_messages
from wafergpt.wafer.programs.softmax import Softmax

_SEND, _STORE, _HEAD, _COUNT = range(4)  # words of "cache": byte offsets (-1: nothing to do) and a count


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """n_layers; n_slots: positions that a column holds at most; n: elements of k (and of v) per PE."""

    n_layers: int
    n_slots: int
    n: int


class Attention:
    """The cache's arrays, the shift's routes and the instructions, for one role of all PEs."""

    def __init__(
        self, program: Program, code: Code, rows: AllReduce, cache: CacheShape, *, n_heads: int, scale: float
    ) -> None:
        if program.height % n_heads:
            raise ProgramError(f"{n_heads} heads do not divide {program.height} rows of PEs")
        self._code, self._rows, self._shape, self._scale = code, rows, cache, scale
        self._width = program.width
        self._heads = AllReduce(program, code, "y", "head", group=program.height // n_heads)
        self._slot_bytes = 2 * cache.n * 4
        self._limit = cache.n_slots * self._slot_bytes
        self._kv = code.array("kv", cache.n_layers * cache.n_slots * 2 * cache.n)
        self._words = code.array("cache", 4, "i32")
        self._column = code.param("cache column")
        self._scores, self._mixed = code.array("scores", cache.n_slots), code.array("mixed", 1 + cache.n)
        self._some = code.view(self._scores, 0, cache.n_slots)
        self._slot, self._half = code.view(self._kv, 0, 2 * cache.n), code.view(self._kv, 0, cache.n)
        self._softmax = Softmax(code, rows)
        self._score_lane, self._mixed_lane = self._heads.lane(cache.n_slots), rows.lane(1 + cache.n)
        self._shifts = route_messages(program, "x", [(x, x + 1) for x in range(self._width - 1)], "shift")
        if self._shifts:
            self._out = code.send(self._shifts[0], 2 * cache.n)
            self._in = code.recv(self._shifts[0], 2 * cache.n)
            self._colors = code.array("shift colors", 2, "i32")

    def prepare(self) -> None:
        """Instructions that set up the descriptors: once per load."""
        self._heads.prepare()
        if self._shifts:
            with self._code.regs(1) as (color,):
                for place, dsd in enumerate((self._out, self._in)):
                    self._code.load(color, self._colors, place)
                    self._code.set(dsd, "color", color)

    def load(self, machine: Machine) -> None:
        """Copy the parameters of all PEs (host)."""
        shape, width = (machine.image.height, machine.image.width), self._width
        self._heads.load(machine)
        machine.memcpy_h2d("cache column", [list(range(width))] * shape[0])
        if self._shifts:
            colors = [color.index for color in self._shifts]
            pairs = [[colors[min(x, width - 2)], colors[max(x - 1, 0)]] for x in range(width)]
            machine.memcpy_h2d("shift colors", [pairs] * shape[0])

    def clear(self) -> None:
        """Forget all positions."""
        code = self._code
        with code.regs(1) as (zero,):
            code.li(zero, 0)
            code.store(self._words, zero, _HEAD)
            code.store(self._words, zero, _COUNT)

    def begin(self, position: Reg) -> None:
        """Work out what this PE passes on and stores for the token at `position`; once, before its layers."""
        code, words = self._code, self._words
        with code.regs(5) as (column, growing, head, count, slot):
            code.load(column, self._column)
            code.imod(growing, position, self._width)
            code.load(head, words, _HEAD)
            code.load(count, words, _COUNT)
            code.li(slot, -1)
            code.store(words, slot, _SEND)
            code.store(words, slot, _STORE)
            with code.if_(column, "<", growing):
                code.store(words, head, _SEND)
                code.iadd(head, head, self._slot_bytes)
                self._wrap(head)
            with code.if_(column, "==", growing):
                code.iadd(count, count, 1)
            with code.if_(growing, ">=", column):
                code.isub(slot, count, 1)
                code.imul(slot, slot, self._slot_bytes)
                code.iadd(slot, slot, head)
                self._wrap(slot)
                code.store(words, slot, _STORE)
            code.store(words, head, _HEAD)
            code.store(words, count, _COUNT)
            code.set(self._some, "length", count)
            self._heads.set_length(self._score_lane, count)

    def _wrap(self, offset: Reg) -> None:
        with self._code.if_(offset, ">=", self._limit):
            self._code.isub(offset, offset, self._limit)

    def emit(self, out: Array, qkv: Array, layer: Reg) -> None:
        """out [n] = attention of q over the cache and the new k, v. qkv [3 n]: k, v in column 0, q in all."""
        code, n = self._code, self._shape.n
        with code.regs(1) as (base,):
            code.imul(base, layer, self._limit)
            code.iadd(base, base, self._kv.address)
            self._shift(qkv, base)
            code.mul(qkv[:n], qkv[:n], self._scale)
            with self._positions(base) as (at, score, place):
                code.set(self._half, "base", at)
                code.li(score, 0.0)
                code.dot(score, self._half, qkv[:n])
                code.store(self._scores, score, place)
            self._heads.emit(self._some, self._score_lane)
            code.mov(self._mixed, 0.0)
            with code.regs(1) as (total,):
                self._softmax.exponentials(total, self._some)
                code.store(self._mixed, total)
            with self._positions(base) as (at, weight, place):
                code.iadd(at, at, n * 4)
                code.set(self._half, "base", at)
                code.load(weight, self._scores, place)
                code.fmac(self._mixed[1:], self._half, weight, self._mixed[1:])
        self._rows.emit(self._mixed, self._mixed_lane)
        with code.regs(1) as (total,):
            code.load(total, self._mixed)
            code.div(total, 1.0, total)
            code.mul(out, self._mixed[1:], total)

    def _shift(self, qkv: Array, base: Reg) -> None:
        code, new = self._code, qkv[self._shape.n :]
        with code.regs(2) as (at, column):
            if self._shifts:
                code.load(at, self._words, _SEND)
                with code.if_(at, ">=", 0):
                    code.iadd(at, at, base)
                    code.set(self._slot, "base", at)
                    code.mov(self._out, self._slot)
            code.load(at, self._words, _STORE)
            with code.if_(at, ">=", 0):
                code.iadd(at, at, base)
                code.set(self._slot, "base", at)
                code.load(column, self._column)
                with code.if_(column, "==", 0):
                    code.mov(self._slot, new)
                if self._shifts:
                    with code.if_(column, "!=", 0):
                        code.mov(self._slot, self._in)

    @contextmanager
    def _positions(self, base: Reg) -> Iterator[tuple[Reg, Reg, Reg]]:
        """The block for each position held, oldest first: its address, a free register, its place."""
        code = self._code
        with code.regs(4) as (slot, count, at, free):
            code.load(slot, self._words, _HEAD)
            code.load(count, self._words, _COUNT)
            with code.loop(count) as place:
                code.iadd(at, slot, base)
                yield at, free, place
                code.iadd(slot, slot, self._slot_bytes)
                self._wrap(slot)


def attention(
    qkv: NDArray[np.float32], *, n_heads: int, scale: float, width: int, height: int, engine: str = "auto"
) -> NDArray[np.float32]:
    """Causal attention of T tokens, one by one: qkv [T, 3 d] (q, k, v) -> [T, d]. Only column 0 is given
    k and v, the others hold NaN in their place."""
    n_tokens, d = qkv.shape[0], qkv.shape[1] // 3
    n = d // height
    program = Program(width, height)
    code = program.role("worker")
    rows = AllReduce(program, code, "x", "row")
    cache = CacheShape(n_layers=1, n_slots=-(-n_tokens // width), n=n)
    function = Attention(program, code, rows, cache, n_heads=n_heads, scale=scale)
    given, results = code.array("qkv", n_tokens * 3 * n), code.array("results", n_tokens * n)
    now, out = code.array("qkv now", 3 * n), code.array("out", n)
    source, target = code.view(given, 0, 3 * n), code.view(results, 0, n)
    with code.task("main"), code.regs(1) as (layer,):
        rows.prepare()
        function.prepare()
        function.clear()
        code.li(layer, 0)
        with code.loop(n_tokens) as position:
            code.mov(now, source)
            function.begin(position)
            function.emit(out, now, layer)
            code.mov(target, out)
            code.advance(source, 3 * n)
            code.advance(target, n)
        code.done()
    machine = Machine(program, engine=engine)
    rows.load(machine)
    function.load(machine)
    parts = qkv.reshape(n_tokens, 3, height, n).transpose(2, 0, 1, 3)  # [height, T, 3, n]
    placed = np.broadcast_to(parts[:, None], (height, width, n_tokens, 3, n)).copy()
    placed[:, 1:, :, 1:] = np.nan
    machine.memcpy_h2d("qkv", placed.reshape(height, width, -1))
    machine.launch("main")
    found = machine.memcpy_d2h("results")[:, 0].reshape(height, n_tokens, n)
    return found.transpose(1, 0, 2).reshape(n_tokens, d)
