"""What can be wrong with a program for the mesh: each case has its own name and one clear line."""

from __future__ import annotations

from wafergpt.errors import ConfigError, WaferGPTError


class ProgramError(ConfigError):
    """A program cannot be built: an operand, register, name or region that it does not have."""


class SramOverflowError(ProgramError):
    """Code, descriptors and arrays of a PE do not fit its SRAM."""


class RouteError(ProgramError):
    """A route leads nowhere: off the mesh, into a router that does not take it, or is not there."""


class UnknownOperationError(ProgramError):
    """An instruction word that no engine knows, or control running off the end of the code."""


class MachineError(WaferGPTError):
    """Base of what stops a run."""


class MemoryFaultError(MachineError):
    """A PE addressed memory that its program does not have, or not aligned to the element."""


class OperandError(MachineError):
    """An instruction met operands of kinds or types that its operation does not take."""


class DeadlockError(MachineError):
    """Nothing can move and PEs are not done; `blocked` says for each of them what it waits for."""

    def __init__(self, message: str, blocked: dict[tuple[int, int], str]) -> None:
        super().__init__(message)
        self.blocked = blocked


class RunAwayError(MachineError):
    """The cycle limit was reached."""


class WaveletLeakError(MachineError):
    """Debug check: wavelets sent are not wavelets received plus in flight (a bug of the engine)."""
