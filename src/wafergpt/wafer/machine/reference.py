"""The NumPy reference engine: the definition of a cycle, arrays over the grid, no loop over PEs.

In a cycle every core and every router acts once on the state at its start. A core whose busy time is over
lets one thread act, in turns: its main thread (a task launch, a scalar instruction, a step of the vector
instruction it waits for) or a microthread (a step). If nothing moved, time jumps to the next timer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Fault, Op, Stop, Word
from wafergpt.wafer.machine.queues import Index, Mask, Queues, mix
from wafergpt.wafer.machine.reference_router import Routers
from wafergpt.wafer.machine.reference_scalar import Scalars
from wafergpt.wafer.machine.reference_vector import Vectors
from wafergpt.wafer.machine.spans import SpanKind, record
from wafergpt.wafer.machine.state import State

_LAUNCH, _SCALAR, _STEP = 1, 2, 3
_NEVER = 0x7FFFFFFF


class ReferenceEngine:
    """Advances a `State` in place, exactly as the native engine does."""

    name = "numpy"

    def __init__(self, image: Image, state: State, *, check: bool = False) -> None:
        self._image, self._state, self._check = image, state, check
        self._queues = Queues(image, state)
        self._vectors = Vectors(image, state, self._queues, self._fault)
        self._scalars = Scalars(image, state, self._vectors, self._fault)
        self._routers = Routers(image, state, self._queues)
        self._faulted = False

    def run(self, limit: int) -> Stop:
        """Go on until nothing moves, a fault, or absolute cycle `limit`."""
        clock = self._state.clock
        cycle, last_moved = int(clock[0]), int(clock[2]) - 1
        stop: Stop | None = None
        self._faulted = False
        with np.errstate(all="ignore"):
            while stop is None:
                moved = self._cores(cycle)
                moved |= self._routers.step(cycle)
                following = cycle + 1
                if self._check and self._leaks():
                    stop = Stop.LEAK
                if self._faulted:
                    stop = Stop.FAULT
                elif moved:
                    last_moved = cycle
                else:
                    clock[3] += 1
                    soonest = self._next_event(cycle)
                    if soonest == _NEVER:
                        stop = stop or Stop.QUIET
                    else:
                        following = soonest
                        clock[1] += soonest - cycle - 1
                if stop is None and following >= limit:
                    stop = Stop.LIMIT
                cycle = following
        clock[0], clock[2] = cycle, last_moved + 1
        return stop

    def _fault(self, fault: Fault, pe: Index, pc: Index, detail: Index) -> None:
        """Keep the fault of the PE with the lowest number."""
        if len(pe) == 0:
            return
        first = int(np.argmin(pe))
        record = self._state.fault
        if not self._faulted or pe[first] < record[1]:
            record[:4] = int(fault), pe[first], pc[first], detail[first]
        self._faulted = True

    def _leaks(self) -> bool:
        return int((self._state.created - self._state.removed).sum()) != self._state.in_flight()

    def _next_event(self, cycle: int) -> int:
        """When a PE may act by itself: a timer, or a wavelet on its way (then the next cycle)."""
        state = self._state
        if (state.latest > cycle).any():
            return cycle + 1
        waits = (state.pc >= 0) & (state.slots[:, 0, isa.SLOT_OP] < 0) & (state.main_ready > cycle)
        timers = np.concatenate([state.busy_until[state.busy_until > cycle], state.main_ready[waits]])
        return min(_NEVER, int(timers.min())) if len(timers) else _NEVER

    def _cores(self, cycle: int) -> bool:
        """Let every free core act; whether one did."""
        state = self._state
        pe = np.flatnonzero(state.busy_until <= cycle)
        can, task = self._able(pe, cycle)
        turns = (state.last_thread[pe][:, None] + 1 + np.arange(isa.N_THREADS)) % isa.N_THREADS
        in_turn = np.take_along_axis(can, turns, axis=1)
        acts = in_turn.any(axis=1)
        thread = np.take_along_axis(turns, in_turn.argmax(axis=1)[:, None], axis=1)[:, 0]
        pe, thread, task = pe[acts], thread[acts].astype(np.int64), task[acts]
        if len(pe) == 0:
            return False
        state.last_thread[pe] = thread
        steps = state.slots[pe, thread, isa.SLOT_OP] >= 0
        launches = ~steps & (thread == 0) & (task >= 0)
        scalars = ~steps & ~launches
        kind = np.where(steps, _STEP, np.where(launches, _LAUNCH, _SCALAR)).astype(np.uint64)
        event = np.uint64(cycle << 8) | thread.astype(np.uint64) << np.uint64(4) | kind
        pc = state.pc[pe].astype(np.uint32).astype(np.uint64)
        what = np.where(launches, task.astype(np.uint64), np.where(scalars, pc, np.uint64(0)))
        mix(state.trace, pe, event ^ what << np.uint64(40))
        self._vectors.step(pe[steps], thread[steps], cycle)
        self._launch(pe[launches], task[launches], cycle)
        self._scalars.step(pe[scalars], cycle)
        return True

    def _able(self, pe: Index, cycle: int) -> tuple[Mask, Index]:
        """Which threads of these PEs can act [n, N_THREADS], and the task that an idle PE would launch."""
        state = self._state
        used = state.slots[pe, :, isa.SLOT_OP] >= 0
        can = np.zeros((len(pe), isa.N_THREADS), np.bool_)
        row, thread = np.nonzero(used)
        can[row, thread] = self._vectors.ready(pe[row], state.slots[pe[row], thread], cycle)
        task = np.full(len(pe), -1, np.int64)
        idle = np.flatnonzero(~used[:, 0] & (state.pc[pe] < 0))
        task[idle] = self._ready_task(pe[idle], cycle)
        can[idle, 0] = task[idle] >= 0
        runs = np.flatnonzero(~used[:, 0] & (state.pc[pe] >= 0))
        pc = state.pc[pe[runs]]
        over = pc >= len(self._image.code)
        code = self._image.code[np.where(over, 0, pc)]
        slot_free = (code[:, Word.OP] != Op.VECTOR) | ~used[runs, np.clip(code[:, Word.THREAD], 0, 8)]
        can[runs, 0] = over | ((state.main_ready[pe[runs]] <= cycle) & slot_free)
        return can, task

    def _ready_task(self, pe: Index, cycle: int) -> NDArray[np.int64]:
        """The ready task of the lowest number of each idle PE, or -1."""
        image, state = self._image, self._state
        found = np.full(len(pe), -1, np.int64)
        for task in range(isa.N_TASKS):
            color = image.task_color[pe, task].astype(np.int64)
            may = (image.task_entry[pe, task] >= 0) & (state.blocked[pe] >> np.uint32(task) & 1 == 0)
            may &= found < 0
            if not may.any():
                continue
            ready = may & (color < 0) & (state.active[pe] >> np.uint32(task) & 1 != 0)
            fired = np.flatnonzero(may & (color >= 0))
            q = self._queues.number(pe[fired], color[fired], isa.CORE_QUEUE)
            there, control, _ = self._queues.peek(q, cycle)
            ready[fired] = there & (control == (image.task_control[pe[fired], task] != 0))
            found[ready] = task
        return found

    def _launch(self, pe: Index, task: Index, cycle: int) -> None:
        """Start tasks; a data or control task takes its wavelet into register 0."""
        image, state = self._image, self._state
        color = image.task_color[pe, task].astype(np.int64)
        local = color < 0
        state.active[pe[local]] &= ~(np.uint32(1) << task[local].astype(np.uint32))
        fired = np.flatnonzero(~local)
        q = self._queues.number(pe[fired], color[fired], isa.CORE_QUEUE)
        state.regs[pe[fired], 0] = self._queues.peek(q, cycle)[2].view(np.int32)
        self._queues.pop(q, cycle)
        state.removed[pe[fired]] += 1
        state.pc[pe] = image.task_entry[pe, task]
        state.main_ready[pe] = cycle + 1 + image.timing.task_launch_cycles
        state.busy_until[pe] = cycle + 1
        state.busy_cycles[pe] += 1
        record(state, pe, cycle, np.ones(len(pe), np.int64), SpanKind.LAUNCH | task << 8, state.pc[pe])
