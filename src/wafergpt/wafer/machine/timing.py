"""Cycles that the machine charges, in one place. Each field says where its value comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from wafergpt.wafer.machine.isa import N_ALU, Alu

# [assumed] cycles per element of a function, computed in software from multiplies and adds; a square root or
# division by Newton steps from a table value. One element at a time: no SIMD.
FUNCTION_CYCLES: dict[Alu, int] = {
    Alu.DIV: 8,
    Alu.SQRT: 10,
    Alu.RSQRT: 8,
    Alu.EXP: 12,
    Alu.TANH: 24,
    Alu.ERF: 28,
    Alu.GELU: 32,
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the engines need of the hardware. `mesh` programs take `Timing()`; `arch.py` holds the sources."""

    sram_bytes: int = 49152  # published: 48 KB per PE
    n_colors: int = 24  # published
    ramp_cycles: int = 2  # published (LUCZ): T_R, core to router and router to core
    task_launch_cycles: int = 0  # [assumed] beyond the cycle in which the task is picked
    div_cycles: int = 12  # [assumed] integer division
    link_depth: int = 4  # [assumed] wavelets per router queue (color and port)
    core_depth: int = 8  # [assumed] wavelets between router and core per color, those on the ramp included
    up_depth: int = 8  # [assumed] wavelets between core and router per color, those on the ramp included
    io_bytes_per_cycle: float = 176.0  # derived: 150 GB/s at 0.85 GHz
    io_latency_cycles: int = 1000  # [assumed] per host copy
    function_cycles: dict[Alu, int] = field(default_factory=lambda: dict(FUNCTION_CYCLES))

    def alu_cycles(self) -> list[int]:
        """Cycles per element (or per SIMD step, where 1) of every operation, in the order of `Alu`."""
        return [self.function_cycles.get(Alu(mode), 1) for mode in range(N_ALU)]
