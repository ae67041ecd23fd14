"""The wafers' numbers: both clocks, and that the simulator's machine is the one that `arch.py` describes."""

from __future__ import annotations

import dataclasses

import pytest

from wafergpt.errors import ConfigError
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.arch import SIMULATED, WSE2, WSE3, get_arch
from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.timing import Timing
from wafergpt.wafer.workload import TransformerShape, describe_transformer

SHAPE = TransformerShape(
    name="tiny", n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, d_ffn=256, vocab_size=256, max_seq_len=64
)


def test_both_clocks_give_the_same_cycles() -> None:
    """0.85 and 1.1 GHz: the chip's time follows the clock; what comes from off the wafer does not."""
    for name in ("WSE-2", "16x16", "cs-3"):
        fast, slow = get_arch(name), get_arch(f"{name}@sdk")
        assert (fast.clock_hz, slow.clock_hz) == (1.1e9, 0.85e9)
        assert slow.n_pes == fast.n_pes and "0.85 GHz" in slow.name
        workload = describe_transformer(SHAPE, batch=2, seq_len=64)
        runs = [price(workload, arch, execution="resident") for arch in (fast, slow)]
        assert runs[1].clock_hz == 0.85e9
        assert runs[1].modelled_s == pytest.approx(runs[1].cycles / 0.85e9)
        for part in ("compute", "fabric", "reduction"):
            assert runs[0].breakdown_cycles[part] == pytest.approx(runs[1].breakdown_cycles[part])
    with pytest.raises(ConfigError, match="unknown clock '2GHz'; known: WSE-2@sdk"):
        get_arch("WSE-2@2GHz")


def test_the_machine_charges_what_arch_says() -> None:
    timing = Timing()
    for field in dataclasses.fields(Timing):
        if field.name != "function_cycles":
            assert getattr(timing, field.name) == SIMULATED[field.name].value
    functions = {f"function_{alu.name.lower()}_cycles": n for alu, n in timing.function_cycles.items()}
    assert functions == {n: q.value for n, q in SIMULATED.items() if n.startswith("function_")}
    assert len(functions) == 7
    for name in ("sram_bytes", "n_colors", "ramp_cycles"):
        assert SIMULATED[name] == WSE2.figures[name] == WSE3.figures[name]


def test_the_instruction_set_has_what_arch_says() -> None:
    figures = WSE2.quantities()
    assert figures["n_registers"].value == isa.N_REGISTERS
    assert figures["n_microthreads"].value == isa.N_THREADS - 1  # slot 0 is the main thread's
    assert figures["n_switch_positions"].value == isa.N_POSITIONS
    assert 8 * isa.TYPE_BYTES[isa.Type.F32] == figures["link_bits"].value


def test_more_colors_than_a_router_has_are_refused_even_if_the_timing_allows_them() -> None:
    program = Program(1, 1, timing=Timing(n_colors=30))
    for i in range(25):
        program.color(f"color {i}")
    with pytest.raises(ProgramError, match="25 colors; a router has 24"):
        program.build()
