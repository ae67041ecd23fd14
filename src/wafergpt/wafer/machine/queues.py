"""The fabric's queues for the NumPy reference: arrays of queue numbers in, arrays out.

A queue has one writer and one reader. What a writer sees of it is its state at the start of the cycle, so the
order in which PEs act within a cycle cannot matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.state import State

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Queues:
    """Views on the queues of a `State`."""

    def __init__(self, image: Image, state: State) -> None:
        self._state = state
        self._ring = state.q_value.shape[1]
        self._n_colors = len(image.color_names)

    def number(self, pe: Index, color: Index | int, port: Index | int) -> Index:
        """The queue of a PE's color behind a port (or `CORE_QUEUE`)."""
        return (pe * self._n_colors + color) * isa.N_QUEUES + port

    def peek(self, q: Index, cycle: int) -> tuple[Mask, Mask, Words]:
        """Whether an entry is ready, whether it is a control wavelet, its value."""
        state = self._state
        head = state.q_head[q] & _LOW
        place = (head % np.uint64(self._ring)).astype(np.int64)
        word = state.q_ready[q, place]
        there = (state.q_tail[q] != head.astype(np.uint32)) & (word >> 1 <= cycle)
        return there, (word & 1) != 0, state.q_value[q, place]

    def occupied(self, q: Index, cycle: int) -> NDArray[np.int64]:
        """Entries at the start of the cycle, what was taken in this cycle included."""
        head = self._state.q_head[q]
        count = (self._state.q_tail[q] - (head & _LOW).astype(np.uint32)).astype(np.int64)
        popped_now: Index = ((head >> _HIGH) == np.uint64(cycle + 1)).astype(np.int64)
        return count + popped_now

    def pop(self, q: Index, cycle: int) -> None:
        """Take the head of each queue; no queue twice in a cycle."""
        head = ((self._state.q_head[q] & _LOW) + np.uint64(1)) & _LOW
        self._state.q_head[q] = head | np.uint64(cycle + 1) << _HIGH

    def push(self, q: Index, value: Words, ready: Index, control: Mask) -> None:
        """Append one entry to each queue; no queue twice in a cycle."""
        tail = self._state.q_tail[q]
        place = (tail % np.uint32(self._ring)).astype(np.int64)
        self._state.q_value[q, place] = value
        self._state.q_ready[q, place] = ready * 2 + control
        self._state.q_tail[q] = tail + np.uint32(1)


def mix(trace: NDArray[np.uint64], pe: Index, event: NDArray[np.uint64]) -> None:
    """Fold an event into the running hash of each PE; no PE twice in a call."""
    value = (trace[pe] ^ event) * _GOLDEN
    trace[pe] = value ^ value >> np.uint64(29)
