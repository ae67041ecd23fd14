"""Why PEs do not go on: what a deadlock message says of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Alu, Field, Kind, Word
from wafergpt.wafer.machine.state import State


def blocked_pes(image: Image, state: State, pes: NDArray[np.int64]) -> dict[tuple[int, int], str]:
    """(x, y) -> what the PE waits for, for PEs that are not done although nothing moves."""
    return {(int(pe) % image.width, int(pe) // image.width): _why(image, state, int(pe)) for pe in pes}


def _why(image: Image, state: State, pe: int) -> str:
    role = image.role_names[image.role[pe]]
    if state.slots[pe, 0, isa.SLOT_OP] >= 0:
        return f"({role}) {_slot(image, state, pe, 0)}"
    if state.pc[pe] >= 0:
        pc = int(state.pc[pe])
        thread = int(image.code[pc, Word.THREAD])
        what = _slot(image, state, pe, thread)
        return f"({role}) at instruction {pc} waits for microthread {thread}, which {what}"
    busy = [t for t in range(1, isa.N_THREADS) if state.slots[pe, t, isa.SLOT_OP] >= 0]
    if busy:
        return f"({role}) runs no task; microthread {busy[0]} {_slot(image, state, pe, busy[0])}"
    names = image.task_names[image.role[pe]]
    stuck = [
        n
        for n, i in names.items()
        if state.active[pe] >> np.uint32(i) & 1 and state.blocked[pe] >> np.uint32(i) & 1
    ]
    if stuck:
        return f"({role}) has activated task '{stuck[0]}', which is blocked"
    return f"({role}) has no task to run and did not reach `done`"


def _slot(image: Image, state: State, pe: int, thread: int) -> str:
    """What the vector operation in a slot waits for."""
    slot = state.slots[pe, thread]
    if slot[isa.SLOT_OP] < 0:
        return "is free"
    operation = Alu(int(slot[isa.SLOT_OP])).name
    done = f"{operation} at instruction {slot[isa.SLOT_PC]}, element {slot[isa.SLOT_I]} of {slot[isa.SLOT_N]}"
    for place in range(4):
        operand = slot[isa.SLOT_OPERANDS + place * isa.DSD_WORDS :][: isa.DSD_WORDS]
        kind = int(operand[Field.KIND])
        if kind not in (Kind.RECEIVE, Kind.SEND, Kind.CONTROL):
            continue
        color = int(operand[Field.COLOR])
        queue = (pe * len(image.color_names) + color) * isa.N_QUEUES
        queue += isa.CORE_QUEUE if kind == Kind.RECEIVE else isa.RAMP
        count = int(state.q_tail[queue]) - (int(state.q_head[queue]) & 0xFFFFFFFF)
        name = image.color_names[color]
        if kind == Kind.RECEIVE and count == 0:
            return f"waits to receive on color '{name}' ({done})"
        if kind == Kind.RECEIVE and _head_is_control(state, queue):
            return f"finds a control wavelet before the data on color '{name}' ({done})"
        if kind != Kind.RECEIVE and count >= image.timing.up_depth:
            return f"waits for credit to send on color '{name}' ({done})"
    return f"waits ({done})"


def _head_is_control(state: State, queue: int) -> bool:
    place = int(state.q_head[queue]) % state.q_ready.shape[1]
    return bool(state.q_ready[queue, place] & 1)
