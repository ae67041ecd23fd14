"""The routers of the NumPy reference: one cycle of all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.queues import Index, Mask, Queues, Words, mix
from wafergpt.wafer.machine.state import State


class Routers:
    """A router looks at its queues in turns (from `rr` on) and passes on the head of each whose route, output
    ports and credits allow it; an output port carries one wavelet per cycle, a multicast needs all of its."""

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
        rr = state.rr.astype(np.int64)
        used = np.zeros(self._image.n_pes, np.int64)
        moved = np.zeros(self._image.n_pes, np.bool_)
        commands: list[tuple[Index, Words]] = []
        for k in range(self._n_candidates):
            candidate = (rr + k) % self._n_candidates
            pe = np.flatnonzero(there[self._all, candidate])
            if len(pe) == 0:
                continue
            chosen = candidate[pe]
            pe, outs, at = self._granted(pe, chosen, control[pe, chosen], used, cycle)
            if len(pe) == 0:
                continue
            chosen = candidate[pe]
            word, is_control = value[pe, chosen], control[pe, chosen]
            used[pe] |= outs
            self._forward(pe, chosen // isa.N_PORTS, outs, (word, is_control), cycle)
            self._queues.pop(self._numbers[pe, chosen], cycle)
            event = np.uint64(cycle << 8 | 0x80) | chosen.astype(np.uint64)
            mix(state.trace, pe, event ^ word.astype(np.uint64) << np.uint64(32))
            first = pe[~moved[pe]]
            state.rr[first] = (candidate[first] + 1) % self._n_candidates
            moved[pe] = True
            commands.append((at[is_control], word[is_control] & np.uint32(3)))
        for at, command in commands:
            self._advance(at, command)
        return bool(moved.any())

    def _granted(
        self, pe: Index, chosen: Index, control: Mask, used: Index, cycle: int
    ) -> tuple[Index, Index, Index]:
        """Of the PEs with a ready wavelet: those whose wavelet may go, its output ports, its router's row."""
        image, state = self._image, self._state
        color, port = np.divmod(chosen, isa.N_PORTS)
        position = state.position[pe, color].astype(np.int64)
        outs = image.route_tx[pe, color, position].astype(np.int64)
        heard = image.ramp_use[pe, color] & 4
        outs = np.where(control & (heard == 0), outs & ~(1 << isa.RAMP), outs)
        may = (image.route_rx[pe, color, position].astype(np.int64) >> port & 1) != 0
        may &= (outs & used[pe]) == 0
        for out in range(isa.N_PORTS):
            needs = np.flatnonzero(may & (outs >> out & 1 != 0))
            to, q, depth = self._target(pe[needs], color[needs], out)
            full = (to < 0) | (self._queues.occupied(q, cycle) >= depth)
            may[needs[full]] = False
        return pe[may], outs[may], pe[may] * len(image.color_names) + color[may]

    def _target(self, pe: Index, color: Index, out: int) -> tuple[Index, Index, int]:
        """Where a wavelet leaving through `out` goes: PE (-1 off the mesh), queue, how many it may hold."""
        timing = self._image.timing
        if out == isa.RAMP:
            return pe, self._queues.number(pe, color, isa.CORE_QUEUE), timing.core_depth
        to = self._beyond[out][pe]
        return to, self._queues.number(np.maximum(to, 0), color, (out + 2) & 3), timing.link_depth

    def _forward(self, pe: Index, color: Index, outs: Index, wavelet: tuple[Words, Mask], cycle: int) -> None:
        word, control = wavelet
        state = self._state
        sent = np.where(control, word >> np.uint32(2), word).astype(np.uint32)
        for out in range(isa.N_PORTS):
            here = outs >> out & 1 != 0
            _, q, _ = self._target(pe[here], color[here], out)
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
        position[at] = np.where(command == isa.CONTROL_RESET, 0, advanced)
