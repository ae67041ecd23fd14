"""The routers of the NumPy reference: one cycle of all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.queues import Index, Mask, Queues, Words, mix
from wafergpt.wafer.machine.state import State


class Routers:
    """A router passes on the head of each of its queues whose route, output ports and credits allow it; an
    output port carries one wavelet per cycle, a multicast needs all of its ports. The lower color goes first,
    then the port in the order of `PORTS` [assumed: with it the star reduction costs what is published]."""

    def __init__(self, image: Image, state: State, queues: Queues) -> None:
        self._image, self._state, self._queues = image, state, queues
        n, c = image.n_pes, len(image.color_names)
        self._all = np.arange(n)
        self._n_candidates = c * isa.N_PORTS
        colors, ports = np.divmod(np.arange(self._n_candidates), isa.N_PORTS)
        self._numbers = queues.number(self._all[:, None], colors[None, :], ports[None, :])
        x, y = self._all % image.width, self._all // image.width
        beyond = [self._all - image.width, self._all + 1, self._all + image.width, self._all - 1]
        inside = [y > 0, x + 1 < image.width, y + 1 < image.height, x > 0]
        self._beyond = [np.where(ok, there, -1) for ok, there in zip(inside, beyond, strict=True)]

    def step(self, cycle: int) -> bool:
        """Pass on what can be passed on; whether anything moved."""
        state = self._state
        there, control, value = self._queues.peek(self._numbers, cycle)
        if not there.any():
            return False
        used = np.zeros(self._image.n_pes, np.int64)
        moved = False
        commands: list[tuple[Index, Words]] = []
        for candidate in np.flatnonzero(there.any(axis=0)):
            color, port = divmod(int(candidate), isa.N_PORTS)
            pe = np.flatnonzero(there[:, candidate])
            pe, outs = self._granted(pe, (color, port), control[pe, candidate], used, cycle)
            if len(pe) == 0:
                continue
            word, is_control = value[pe, candidate], control[pe, candidate]
            used[pe] |= outs
            self._forward((pe, color), outs, (word, is_control), cycle)
            self._queues.pop(self._numbers[pe, candidate], cycle)
            event = np.uint64(cycle << 8 | 0x80 | int(candidate))
            mix(state.trace, pe, event ^ word.astype(np.uint64) << np.uint64(32))
            moved = True
            at = pe * len(self._image.color_names) + color
            commands.append((at[is_control], word[is_control] & np.uint32(3)))
        for at, command in commands:
            self._advance(at, command)
        return moved

    def _granted(
        self, pe: Index, queue: tuple[int, int], control: Mask, used: Index, cycle: int
    ) -> tuple[Index, Index]:
        """Of the PEs with a ready wavelet in `queue` (color, port): those whose may go, its output ports."""
        image, state = self._image, self._state
        color, port = queue
        position = state.position[pe, color].astype(np.int64)
        outs = image.route_tx[pe, color, position].astype(np.int64)
        heard = image.ramp_use[pe, color] & 4
        outs = np.where(control & (heard == 0), outs & ~(1 << isa.RAMP), outs)
        may = (image.route_rx[pe, color, position].astype(np.int64) >> port & 1) != 0
        may &= (outs & used[pe]) == 0
        for out in range(isa.N_PORTS):
            needs = np.flatnonzero(may & (outs >> out & 1 != 0))
            to, q, depth = self._target(pe[needs], color, out)
            full = (to < 0) | (self._queues.occupied(q, cycle) >= depth)
            may[needs[full]] = False
        return pe[may], outs[may]

    def _target(self, pe: Index, color: int, out: int) -> tuple[Index, Index, int]:
        """Where a wavelet leaving through `out` goes: PE (-1 off the mesh), queue, how many it may hold."""
        timing = self._image.timing
        if out == isa.RAMP:
            return pe, self._queues.number(pe, color, isa.CORE_QUEUE), timing.core_depth
        to = self._beyond[out][pe]
        return to, self._queues.number(np.maximum(to, 0), color, (out + 2) & 3), timing.link_depth

    def _forward(
        self, queue: tuple[Index, int], outs: Index, wavelet: tuple[Words, Mask], cycle: int
    ) -> None:
        pe, color = queue
        word, control = wavelet
        state = self._state
        takes = control & (word & np.uint32(3) != isa.CONTROL_RESET_ALL)
        sent = np.where(takes, word >> np.uint32(2), word).astype(np.uint32)
        for out in range(isa.N_PORTS):
            here = outs >> out & 1 != 0
            _, q, _ = self._target(pe[here], color, out)
            ready = cycle + (self._image.timing.ramp_cycles if out == isa.RAMP else 1)
            self._queues.push(q, sent[here], np.full(int(here.sum()), ready), control[here])
            state.latest[pe[here]] = np.maximum(state.latest[pe[here]], ready)
            state.created[pe[here]] += 1
            state.link_wavelets[pe[here], out] += 1
        state.removed[pe] += 1

    def _advance(self, at: Index, command: NDArray[np.uint32]) -> None:
        """Apply commands of control wavelets to switches; `at` is the row of (PE, color)."""
        image = self._image
        position = self._state.position.reshape(-1)
        following = position[at] + 1
        wraps = np.where(image.ring_mode.reshape(-1)[at] != 0, 0, position[at])
        following = np.where(following < image.n_positions.reshape(-1)[at], following, wraps)
        advanced = np.where(command == isa.CONTROL_ADVANCE, following, position[at])
        position[at] = np.where(command >= isa.CONTROL_RESET, 0, advanced)
