"""Cycles that the machine charges, in one place; `arch.py` says where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from wafergpt.wafer.arch import SIMULATED
from wafergpt.wafer.machine.isa import N_ALU, Alu

_N = {name: int(quantity.value) for name, quantity in SIMULATED.items()}

# Cycles per element of a function.
FUNCTION_CYCLES: dict[Alu, int] = {
    alu: _N[name] for alu in Alu if (name := f"function_{alu.name.lower()}_cycles") in _N
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the engines need of the hardware: `arch.SIMULATED`, unless a program is given another."""

    sram_bytes: int = _N["sram_bytes"]
    n_colors: int = _N["n_colors"]
    ramp_cycles: int = _N["ramp_cycles"]
    task_launch_cycles: int = _N["task_launch_cycles"]
    div_cycles: int = _N["div_cycles"]
    link_depth: int = _N["link_depth"]
    core_depth: int = _N["core_depth"]
    up_depth: int = _N["up_depth"]
    io_bytes_per_cycle: float = SIMULATED["io_bytes_per_cycle"].value
    io_latency_cycles: int = _N["io_latency_cycles"]
    function_cycles: dict[Alu, int] = field(default_factory=lambda: dict(FUNCTION_CYCLES))

    def alu_cycles(self) -> list[int]:
        """Cycles per element (or per SIMD step, where 1) of every operation, in the order of `Alu`."""
        return [self.function_cycles.get(Alu(mode), 1) for mode in range(N_ALU)]
