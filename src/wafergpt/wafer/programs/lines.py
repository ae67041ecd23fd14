"""Messages along rows or columns of the mesh: colors and routes for them, and how programs are timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.operands import Array, Color
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine

Message = tuple[int, int]  # from PE, to PE of a line
_EMPTY_REGION_CYCLES = 1  # what two reads of the counter one after the other show


def share_colors(messages: Sequence[Message]) -> list[int]:
    """A color number for each message: messages that meet in a router differ. Greedy, by first PE."""
    order = sorted(range(len(messages)), key=lambda m: (min(messages[m]), max(messages[m])))
    ends: list[int] = []  # last PE that each color is used by
    colors = [0] * len(messages)
    for m in order:
        low, high = min(messages[m]), max(messages[m])
        free = [color for color, end in enumerate(ends) if end < low]
        color = free[0] if free else len(ends)
        if not free:
            ends.append(0)
        ends[color] = high
        colors[m] = color
    return colors


def place(axis: str, position: int | slice) -> tuple[int | slice, int | slice]:
    """The PEs at `position` of every row (axis "x") or column (axis "y"), as a region."""
    return (position, slice(None)) if axis == "x" else (slice(None), position)


def route_messages(program: Program, axis: str, messages: Sequence[Message], name: str) -> list[Color]:
    """Route messages along every row ("x") or column ("y"); the color of each. Greedy sharing of colors."""
    numbers = share_colors(messages)
    colors = [program.color(f"{name} {number}") for number in range(max(numbers, default=-1) + 1)]
    towards, back = ("E", "W") if axis == "x" else ("S", "N")
    for (source, target), number in zip(messages, numbers, strict=True):
        go, come = (towards, back) if target > source else (back, towards)
        program.route(colors[number], place(axis, source), ("R", go))
        program.route(colors[number], place(axis, target), (come, "R"))
        low, high = min(source, target) + 1, max(source, target)
        if low < high:
            program.route(colors[number], place(axis, slice(low, high)), (come, go))
    return [colors[number] for number in numbers]


def route_broadcast(program: Program, axis: str, root: int, name: str, *, group: int = 0) -> Color:
    """A color on which PE `root` of every row or column (of every `group` PEs of it) reaches the others."""
    color = program.color(name)
    line = program.width if axis == "x" else program.height
    size = group or line
    towards, back = ("E", "W") if axis == "x" else ("S", "N")
    ways = (back if root > 0 else "") + (towards if root + 1 < size else "")
    for start in range(0, line, size):
        sender, last = start + root, start + size - 1
        if sender > start:
            program.route(color, place(axis, slice(start + 1, sender)), (towards, back + "R"))
            program.route(color, place(axis, start), (towards, "R"))
        if sender < last:
            program.route(color, place(axis, slice(sender + 1, last)), (back, towards + "R"))
            program.route(color, place(axis, last), (back, "R"))
        if ways:
            program.route(color, place(axis, sender), ("R", ways))
    return color


class Stopwatch:
    """Reads the cycle counter around a region, as programs on the machine do."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._array: Array = code.array("stopwatch", 4, "i32")

    @contextmanager
    def time(self) -> Iterator[None]:
        """The region to be timed; two registers are in use meanwhile."""
        code = self._code
        low = code.pair()
        code.counter(low[0])
        yield
        last = code.pair()
        code.counter(last[0])
        for place_, register in enumerate((*low, *last)):
            code.store(self._array, register, place_)
        code.release(*low, *last)


def measured_cycles(machine: Machine, pes: NDArray[np.bool_] | None = None) -> int:
    """Latest end minus earliest start over the PEs that have a stopwatch, less what an empty region shows."""
    raw = machine.memcpy_d2h("stopwatch").astype(np.int64) & 0xFFFFFFFF
    chosen = raw[pes] if pes is not None else raw.reshape(-1, 4)
    start, end = chosen[:, 0] | chosen[:, 1] << 32, chosen[:, 2] | chosen[:, 3] << 32
    return int(end.max() - start.min()) - _EMPTY_REGION_CYCLES
