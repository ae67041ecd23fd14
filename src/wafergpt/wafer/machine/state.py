"""The state of a mesh as arrays over its PEs, in the native core's order; both engines advance it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.image import Image

_SCALAR_FIELDS = (
    *("width", "height", "n_colors", "mem_bytes", "n_code", "n_dsd", "ring", "link_depth", "core_depth"),
    *("up_depth", "ramp_cycles", "launch_cycles", "div_cycles", "check", "span_capacity"),
)


@dataclass(kw_only=True)
class State:
    """P PEs, C colors (at least one), Q = P * C * N_QUEUES queues of `ring` entries. Cycles are absolute."""

    mem: NDArray[np.uint8]  # [P, mem_bytes]
    regs: NDArray[np.int32]  # [P, N_REGISTERS]
    dsd: NDArray[np.int32]  # [P, n_dsd, DSD_WORDS]
    slots: NDArray[np.int32]  # [P, N_THREADS, SLOT_WORDS]
    pc: NDArray[np.int32]  # [P], -1: no task runs
    last_thread: NDArray[np.int32]  # [P]
    active: NDArray[np.uint32]  # [P]
    blocked: NDArray[np.uint32]  # [P]
    done_cycle: NDArray[np.int64]  # [P], -1: not done
    busy_until: NDArray[np.int64]  # [P]
    main_ready: NDArray[np.int64]  # [P]
    q_value: NDArray[np.uint32]  # [Q, ring]
    q_ready: NDArray[np.int32]  # [Q, ring]: cycle << 1 | control
    q_head: NDArray[np.uint64]  # [Q]: head | (cycle of the last pop + 1) << 32
    q_tail: NDArray[np.uint32]  # [Q]
    position: NDArray[np.uint8]  # [P, C]
    latest: NDArray[np.int32]  # [P]
    trace: NDArray[np.uint64]  # [P]
    created: NDArray[np.int64]  # [P]
    removed: NDArray[np.int64]  # [P]
    busy_cycles: NDArray[np.int64]  # [P]
    link_wavelets: NDArray[np.int64]  # [P, N_PORTS]
    fault: NDArray[np.int64]  # [5]: kind, PE, pc, detail, lock
    clock: NDArray[np.int64]  # [4]: cycle, skipped, after the last event, cycles in which nothing moved
    span_slot: NDArray[np.int32]  # [P]: row of `spans`, -1: not recorded
    spans: NDArray[np.int32]  # [recorded, capacity, SPAN_WORDS], see `spans.py`
    n_spans: NDArray[np.int64]  # [recorded]: those that found no room count too

    def in_flight(self) -> int:
        """Wavelets in the fabric's queues."""
        return int((self.q_tail - self.q_head.astype(np.uint32)).sum())


def new_state(image: Image) -> State:
    """The mesh before the first launch."""
    n, c, ring = image.n_pes, len(image.color_names), ring_entries(image)
    slots = np.zeros((n, isa.N_THREADS, isa.SLOT_WORDS), np.int32)
    slots[:, :, isa.SLOT_OP] = -1
    return State(
        mem=np.zeros((n, image.mem_bytes), np.uint8),
        regs=np.zeros((n, isa.N_REGISTERS), np.int32),
        dsd=np.ascontiguousarray(image.dsd[image.role]),
        slots=slots,
        pc=np.full(n, -1, np.int32),
        last_thread=np.zeros(n, np.int32),
        active=np.zeros(n, np.uint32),
        blocked=image.blocked.copy(),
        done_cycle=np.full(n, -1, np.int64),
        busy_until=np.zeros(n, np.int64),
        main_ready=np.zeros(n, np.int64),
        q_value=np.zeros((n * c * isa.N_QUEUES, ring), np.uint32),
        q_ready=np.zeros((n * c * isa.N_QUEUES, ring), np.int32),
        q_head=np.zeros(n * c * isa.N_QUEUES, np.uint64),
        q_tail=np.zeros(n * c * isa.N_QUEUES, np.uint32),
        position=np.zeros((n, c), np.uint8),
        latest=np.zeros(n, np.int32),
        trace=np.zeros(n, np.uint64),
        created=np.zeros(n, np.int64),
        removed=np.zeros(n, np.int64),
        busy_cycles=np.zeros(n, np.int64),
        link_wavelets=np.zeros((n, isa.N_PORTS), np.int64),
        fault=np.zeros(5, np.int64),
        clock=np.zeros(4, np.int64),
        span_slot=np.full(n, -1, np.int32),
        spans=np.zeros((0, 0, isa.SPAN_WORDS), np.int32),
        n_spans=np.zeros(0, np.int64),
    )


def ring_entries(image: Image) -> int:
    """Entries of a queue's ring: the deepest queue, rounded up to a power of two."""
    timing = image.timing
    return 1 << (max(timing.link_depth, timing.core_depth, timing.up_depth) - 1).bit_length()


PROGRAM_FIELDS = (
    *("code", "task_entry", "task_color", "task_control", "route_rx", "route_tx", "n_positions", "ring_mode"),
    "ramp_use",
)


class _Machine(ctypes.Structure):
    """`struct Machine` of machine.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SCALAR_FIELDS),
        ("alu_cycles", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in (*PROGRAM_FIELDS, "order")),
        *((field.name, ctypes.c_void_p) for field in fields(State)),
    ]


def native_struct(
    image: Image, state: State, order: NDArray[np.int32], *, check: bool
) -> tuple[Any, list[Any]]:
    """The structure for the native core, and the arrays that must live as long as it is used."""
    timing = image.timing
    alu = np.array(timing.alu_cycles(), np.int64)
    values = (
        *(image.width, image.height, len(image.color_names), image.mem_bytes, len(image.code)),
        *(image.dsd.shape[1], ring_entries(image), timing.link_depth, timing.core_depth, timing.up_depth),
        *(timing.ramp_cycles, timing.task_launch_cycles, timing.div_cycles, int(check), state.spans.shape[1]),
    )
    program = [getattr(image, name) for name in PROGRAM_FIELDS]
    arrays = [alu, *program, order, *(getattr(state, field.name) for field in fields(State))]
    for array in arrays:
        assert array.flags.c_contiguous
    return _Machine(*values, *(array.ctypes.data for array in arrays)), arrays
