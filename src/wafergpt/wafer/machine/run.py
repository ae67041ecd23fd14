"""Load a program onto the mesh, copy data, launch tasks: the host's side of the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wafergpt.wafer.machine import native, spans
from wafergpt.wafer.machine.blocked import blocked_pes
from wafergpt.wafer.machine.errors import (
    DeadlockError,
    MachineError,
    MemoryFaultError,
    OperandError,
    ProgramError,
    RouteError,
    RunAwayError,
    UnknownOperationError,
    WaveletLeakError,
)
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Fault, Stop
from wafergpt.wafer.machine.operands import NUMPY_TYPES, Array
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.reference import ReferenceEngine
from wafergpt.wafer.machine.state import State, new_state

MAX_CYCLES = 1 << 30  # what the queues' time stamps hold
_PART = 20_000_000  # PE-cycles between two looks for an interrupt
_SHOWN = 8  # blocked PEs that an error message lists


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What one launch took. Cycles are the device's; host copies are in `Machine.io_cycles`."""

    cycles: int  # from the launch to the last PE's `done`
    skipped_cycles: (
        int  # of them and of the time after, those the simulator jumped over because nothing moved
    )
    wavelets_in_flight: int  # left in the fabric
    start_cycle: int


class Machine:
    """A mesh with a program loaded. `engine`: "auto" (native if it can be had), "native" or "numpy"."""

    def __init__(
        self,
        program: Program | Image,
        *,
        engine: str = "auto",
        threads: int = 1,
        check: bool = False,
        order: ArrayLike | None = None,
    ) -> None:
        self.image = program.build() if isinstance(program, Program) else program
        self.image.check()
        self.state: State = new_state(self.image)
        self.io_cycles = 0
        n = self.image.n_pes
        visit = np.arange(n, dtype=np.int32) if order is None else np.asarray(order, np.int32).copy()
        if sorted(visit.tolist()) != list(range(n)):
            raise ProgramError("`order` must name every PE once")
        if engine not in ("auto", "native", "numpy"):
            raise ProgramError(f"unknown engine '{engine}': auto, native or numpy")
        reason = native.available() if engine != "numpy" else "not wanted"
        if engine == "native" and reason:
            raise MachineError(f"no native engine: {reason}")
        self._is_native = not reason
        self._order, self._threads, self._check = visit, threads, check
        self._engine = self._new_engine()
        self.engine_name = self._engine.name

    def _new_engine(self) -> native.NativeEngine | ReferenceEngine:
        if not self._is_native:
            return ReferenceEngine(self.image, self.state, check=self._check)
        return native.NativeEngine(
            self.image, self.state, order=self._order, threads=self._threads, check=self._check
        )

    def record(self, pes: Sequence[tuple[int, int]], *, capacity: int = 1 << 16) -> None:
        """Record what the cores of these PEs (x, y) do from now on, at most `capacity` spans each; what was
        recorded before is forgotten. No PEs: record nothing."""
        spans.make_room(self.state, self.image.width, pes, capacity)
        self._engine = self._new_engine()

    def recorded(self) -> list[spans.Spans]:
        """What was recorded since `record`, one entry for each of its PEs."""
        return spans.recorded(self.state, self.image.width)

    # Host copies -----------------------------------------------------------------------------------------

    def _homes(self, name: str) -> list[tuple[Array, NDArray[np.int64]]]:
        """The arrays of that name with the PEs that hold each."""
        homes = [
            (arrays[name], np.flatnonzero(self.image.role == role))
            for role, arrays in enumerate(self.image.arrays)
            if name in arrays
        ]
        if not homes:
            known = ", ".join(dict.fromkeys(each for arrays in self.image.arrays for each in arrays))
            raise ProgramError(f"no role has an array '{name}'; there are: {known or 'none'}")
        return homes

    def memcpy_h2d(self, name: str, values: ArrayLike) -> None:
        """Copy to array `name` of every PE that has it: values [height, width, length], or [height, width]
        if the length is 1, or anything that broadcasts to the former."""
        given = np.asarray(values)
        height, width = self.image.height, self.image.width
        for array, pes in self._homes(name):
            shaped = given[..., None] if given.shape == (height, width) and array.length == 1 else given
            try:
                full = np.broadcast_to(shaped, (height, width, array.length))
            except ValueError:
                raise ProgramError(
                    f"'{name}' is [{height}, {width}, {array.length}], not {list(given.shape)}"
                ) from None
            rows = _as_elements(name, full.reshape(-1, array.length)[pes], array)
            self.state.mem[pes, array.address : array.address + array.n_bytes] = np.ascontiguousarray(
                rows
            ).view(np.uint8)
            self._charge_io(rows.nbytes)

    def memcpy_d2h(self, name: str) -> NDArray[Any]:
        """Array `name` of every PE [height, width, length]; zero where a PE does not have it."""
        homes = self._homes(name)
        length, dtype = homes[0][0].length, NUMPY_TYPES[homes[0][0].type]
        out = np.zeros((self.image.n_pes, length), dtype)
        for array, pes in homes:
            if array.length != length or NUMPY_TYPES[array.type] != dtype:
                raise ProgramError(f"array '{name}' differs between roles")
            raw = np.ascontiguousarray(self.state.mem[pes, array.address : array.address + array.n_bytes])
            out[pes] = raw.view(dtype)
            self._charge_io(raw.nbytes)
        return out.reshape(self.image.height, self.image.width, length)

    def _charge_io(self, n_bytes: int) -> None:
        timing = self.image.timing
        self.io_cycles += timing.io_latency_cycles + int(np.ceil(n_bytes / timing.io_bytes_per_cycle))

    # Launch ----------------------------------------------------------------------------------------------

    def launch(self, task: str, *, max_cycles: int = 100_000_000) -> Launch:
        """Activate local task `task` wherever it is, and run until all those PEs are done and nothing moves.

        Raises DeadlockError, RunAwayError, MemoryFaultError, OperandError, RouteError.
        """
        state, image = self.state, self.image
        start, skipped = int(state.clock[0]), int(state.clock[1])
        state.done_cycle[:] = start
        found = False
        for role, names in enumerate(image.task_names):
            pes = np.flatnonzero(image.role == role)
            if task not in names or len(pes) == 0 or image.task_color[pes[0], names[task]] >= 0:
                continue
            found = True
            state.active[pes] |= np.uint32(1 << names[task])
            state.done_cycle[pes] = -1
        if not found:
            known = ", ".join(dict.fromkeys(each for names in image.task_names for each in names))
            raise ProgramError(f"no role has a local task '{task}'; there are: {known or 'none'}")
        stop = self._run(min(start + max_cycles, MAX_CYCLES))
        if stop == Stop.FAULT:
            raise self._fault()
        if stop == Stop.LEAK:
            raise WaveletLeakError(f"wavelets are lost or invented in cycle {int(state.clock[0])}")
        waiting = np.flatnonzero(state.done_cycle < 0)
        if stop == Stop.LIMIT:
            raise RunAwayError(f"not done after {max_cycles} cycles: {len(waiting)} of {image.n_pes} PEs")
        if len(waiting):
            blocked = blocked_pes(image, state, waiting)
            shown = "; ".join(f"PE {place} {why}" for place, why in list(blocked.items())[:_SHOWN])
            more = f"; and {len(blocked) - _SHOWN} more" if len(blocked) > _SHOWN else ""
            raise DeadlockError(f"deadlock in cycle {int(state.clock[0])}: {shown}{more}", blocked)
        return Launch(
            cycles=int(state.done_cycle.max()) + 1 - start,
            skipped_cycles=int(state.clock[1]) - skipped,
            wavelets_in_flight=state.in_flight(),
            start_cycle=start,
        )

    def _run(self, limit: int) -> Stop:
        """Go on to a stop, in parts of under a second, between which Python sees an interrupt."""
        part = max(1, _PART // self.image.n_pes)
        while True:
            clock = int(self.state.clock[0])
            stop = self._engine.run(min(limit, clock + part))
            if stop != Stop.LIMIT or int(self.state.clock[0]) >= limit:
                return stop

    def _fault(self) -> MachineError | ProgramError:
        kind, pe, pc, detail = (int(value) for value in self.state.fault[:4])
        y, x = divmod(pe, self.image.width)
        role = self.image.role_names[self.image.role[pe]]
        at = f"PE ({x}, {y}), role '{role}', instruction {pc}, cycle {int(self.state.clock[0]) - 1}"
        if kind == Fault.MEMORY:
            return MemoryFaultError(f"{at}: byte address {detail} of {self.image.mem_bytes}")
        if kind == Fault.NO_ROUTE:
            known = 0 <= detail < len(self.image.color_names)
            name = self.image.color_names[detail] if known else str(detail)
            return RouteError(f"{at}: the ramp has no route for color '{name}'")
        if kind == Fault.OPERAND:
            return OperandError(f"{at}: the operation does not take operands of these kinds and types")
        return UnknownOperationError(f"{at}: unknown operation, or off the end of the code")

    def trace_hash(self) -> str:
        """A digest of every event so far (issues, wavelets with values, their cycles) and of all memory."""
        digest = hashlib.sha256(self.state.trace.tobytes())
        for part in (self.state.mem, self.state.regs, self.state.clock[:3], self.state.link_wavelets):
            digest.update(part.tobytes())
        return digest.hexdigest()


def _as_elements(name: str, values: NDArray[Any], array: Array) -> NDArray[Any]:
    """The values in the array's type: rounded to a floating-point one, to an integer one only if they fit."""
    if values.dtype.kind not in "biuf":
        raise ProgramError(f"'{name}' takes numbers, not {values.dtype}")
    with np.errstate(all="ignore"):
        found = values.astype(NUMPY_TYPES[array.type])
    if found.dtype.kind == "i" and not np.array_equal(found, values):
        wrong = values[found != values][0]
        raise ProgramError(f"'{name}' holds int32, and {wrong:g} is none")
    return found
