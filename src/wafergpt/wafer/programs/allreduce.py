"""All-reduce along rows or columns for vectors of any length, within one program that all PEs run.

A two-phase tree sums into the first PE of every line (or of every `group` PEs of it), which then broadcasts.
Every PE of the line ends with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.operands import Array, Dsd, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.collectives import Broadcast, Emitted, Reduce
from wafergpt.wafer.programs.trees import forest, two_phase


@dataclass(frozen=True)
class Lane:
    """A role's descriptors for vectors of one length and type; None where a line is one PE."""

    up: Emitted | None
    down: tuple[Array, Dsd, Dsd] | None


class AllReduce:
    """Reductions along `axis` ("x": within rows, "y": within columns) for one role, `code`, of all PEs."""

    def __init__(self, program: Program, code: Code, axis: str, name: str, *, group: int = 0) -> None:
        line = program.width if axis == "x" else program.height
        size = group or line
        if line % size:
            raise ProgramError(f"a line of {line} PEs does not divide into groups of {size}")
        self.axis, self.size = axis, size
        self._code = code
        self._lanes: dict[tuple[int, str], Lane] = {}
        self._reduce: Reduce | None = None
        self._spread: Broadcast | None = None
        if size > 1:
            self._reduce = Reduce(program, axis, forest(line, two_phase(size)), f"{name} reduce")
            self._spread = Broadcast(program, axis, f"{name} broadcast", group=group)

    def lane(self, length: int, type: str = "f32") -> Lane:
        """Descriptors for `length` elements, shared by all vectors of that length and type."""
        key = (length, type)
        if key not in self._lanes:
            up = self._reduce.emitter(self._code, length, type) if self._reduce else None
            down = self._spread.emitter(self._code, length, type) if self._spread else None
            self._lanes[key] = Lane(up, down)
        return self._lanes[key]

    def set_length(self, lane: Lane, n: Reg) -> None:
        """Let a lane carry n elements from now on, the same n within a line. Set the vector's length too."""
        if lane.up and lane.down:
            self._code.set(lane.up.send, "length", n)
            self._code.set(lane.down[2], "length", n)

    def reduce(self, x: Array | Dsd, lane: Lane, operation: Alu = Alu.ADD) -> None:
        """x = the reduction over the line, in its first PE; elsewhere a partial one."""
        if self._reduce and lane.up:
            self._reduce.emit(self._code, lane.up, x, operation)

    def spread(self, x: Array | Dsd, lane: Lane) -> None:
        """x = the x of the line's first PE."""
        if self._spread and lane.down:
            self._spread.emit(self._code, lane.down, x)

    def emit(self, x: Array | Dsd, lane: Lane, operation: Alu = Alu.ADD) -> None:
        """x = the reduction over the line, in all its PEs."""
        self.reduce(x, lane, operation)
        self.spread(x, lane)

    def prepare(self) -> None:
        """Instructions that set up the descriptors of all lanes: once per load, after every `lane`."""
        for lane in self._lanes.values():
            if self._reduce and lane.up:
                self._reduce.prepare(self._code, lane.up)

    def load(self, machine: Machine) -> None:
        """Copy the parameters of all PEs (host)."""
        if self._reduce and self._spread and self._lanes:
            self._reduce.load(machine)
            self._spread.load(machine)
