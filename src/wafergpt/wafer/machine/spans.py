"""What cores were busy with, cycle by cycle, of the PEs that one asks for: off until `Machine.record`.

A span is `SPAN_WORDS` int32: first cycle, cycle after the last, tag, pc. The tag is a `SpanKind`, the thread
times 16, and times 256 the task of a launch or the `Alu` mode of vector steps. Scalar instructions without a
pause are one span (pc: the first one's), and so are the steps of one vector instruction. The spans' lengths
sum to the PE's `busy_cycles`, as long as there was room for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.queues import Index
from wafergpt.wafer.machine.state import State

START, END, TAG, PC = range(isa.SPAN_WORDS)


class SpanKind(IntEnum):
    """LAUNCH: a task starts; SCALAR, STEP: instructions, steps of a vector instruction; END: a task ends."""

    LAUNCH = 1
    SCALAR = 2
    STEP = 3
    END = 4


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The spans of one PE (x, y) [n, SPAN_WORDS], and how many found no room."""

    x: int
    y: int
    rows: NDArray[np.int32]
    n_lost: int

    @property
    def kinds(self) -> NDArray[np.int32]:
        """The `SpanKind` of each."""
        return self.rows[:, TAG] & 15

    @property
    def threads(self) -> NDArray[np.int32]:
        """The thread of each; 0 is the main one."""
        return self.rows[:, TAG] >> 4 & 15

    @property
    def details(self) -> NDArray[np.int32]:
        """The task of a launch, the `Alu` mode of steps."""
        return self.rows[:, TAG] >> 8


def make_room(state: State, width: int, pes: Sequence[tuple[int, int]], capacity: int) -> None:
    """Have the PEs (x, y) recorded from now on, up to `capacity` spans each. Raises ProgramError."""
    height = len(state.pc) // width
    if len(set(pes)) < len(pes) or not all(0 <= x < width and 0 <= y < height for x, y in pes):
        raise ProgramError(f"PEs to record must be distinct and inside {width} x {height}")
    if not 1 <= capacity * max(1, len(pes)) <= 1 << 28:
        raise ProgramError(f"no room to record {len(pes)} PEs with {capacity} spans each")
    state.span_slot[:] = -1
    for slot, (x, y) in enumerate(pes):
        state.span_slot[y * width + x] = slot
    state.spans = np.zeros((len(pes), capacity if pes else 0, isa.SPAN_WORDS), np.int32)
    state.n_spans = np.zeros(len(pes), np.int64)


def recorded(state: State, width: int) -> list[Spans]:
    """What was recorded, in the order in which the PEs were named."""
    found = []
    pes = np.argsort(state.span_slot, kind="stable")[len(state.pc) - len(state.n_spans) :]
    for slot, pe in enumerate(pes.tolist()):
        n = int(state.n_spans[slot])
        kept = min(n, state.spans.shape[1])
        rows = state.spans[slot, :kept].copy()
        found.append(Spans(x=pe % width, y=pe // width, rows=rows, n_lost=n - kept))
    return found


def record(
    state: State, pe: Index, cycle: int, cost: Index, tag: NDArray[np.int64], pc: NDArray[np.int32] | Index
) -> None:
    """The reference engine's `record` of machine.h: busy cycles from `cycle` on, each PE at most once."""
    capacity = state.spans.shape[1]
    if capacity == 0:
        return
    asked = np.flatnonzero((state.span_slot[pe] >= 0) & (cost > 0))
    slot = state.span_slot[pe[asked]]
    end, tag, pc = cycle + cost[asked], np.asarray(tag)[asked], pc[asked]
    n = state.n_spans[slot]
    last = state.spans[slot, np.clip(n - 1, 0, capacity - 1)]
    kind = tag & 15
    goes_on = (kind == SpanKind.SCALAR) | ((kind == SpanKind.STEP) & (last[:, PC] == pc))
    goes_on &= (n > 0) & (n <= capacity) & (last[:, END] == cycle) & (last[:, TAG] == tag)
    state.spans[slot[goes_on], n[goes_on] - 1, END] = end[goes_on]
    fits = ~goes_on & (n < capacity)
    new = np.stack([np.full(len(end), cycle), end, tag, pc], axis=1).astype(np.int32)
    state.spans[slot[fits], n[fits]] = new[fits]
    state.n_spans[slot[~goes_on]] += 1
