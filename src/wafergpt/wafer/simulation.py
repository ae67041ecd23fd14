"""A tiny GPT on the cycle simulator, and everything one may want to see of the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.wafer.arch import Evidence, mesh
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.spans import Spans
from wafergpt.wafer.machine.timing import Timing
from wafergpt.wafer.programs.memory import memory_parts
from wafergpt.wafer.programs.placement import GPTShape, Placed
from wafergpt.wafer.programs.transformer import Generated, MeshGPT
from wafergpt.wafer.report import Assumption, Report

TINY = GPTShape(
    n_layers=2,
    d_model=64,
    n_heads=4,
    d_ffn=256,
    vocab_size=256,
    n_positions=64,
    gelu="erf",
    attention_scale=0.25,
)
EDGE = 16
NAME = "tiny GPT"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A run. `links`: wavelets that left each PE by port [height, width, 5]; `memory`: bytes by what they are
    [height, width]; `marks`: the steps as (name, first cycle, cycle after the last)."""

    report: Report
    image: Image
    generated: Generated
    placement: tuple[Placed, ...]
    links: NDArray[np.int64]
    memory: dict[str, NDArray[np.int64]]
    recorded: list[Spans]
    marks: list[tuple[str, int, int]]


def random_weights(shape: GPTShape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """GPT-2's names and a draw of weights: what a run costs does not depend on them."""
    d, draw = shape.d_model, np.random.default_rng(seed)
    sizes: dict[str, tuple[int, ...]] = {
        "wte": (shape.vocab_size, d),
        "wpe": (shape.n_positions, d),
        "ln_f": (d,),
    }
    for layer in range(shape.n_layers):
        block = {"ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d)}
        block |= {"ln_2": (d,), "mlp.c_fc": (shape.d_ffn, d), "mlp.c_proj": (d, shape.d_ffn)}
        sizes |= {f"h.{layer}.{name}": size for name, size in block.items()}
    weights = {f"{name}.weight": draw.normal(0, 0.1, size).astype(np.float32) for name, size in sizes.items()}
    biases = {
        f"{n}.bias": np.zeros(size[0], np.float32) for n, size in sizes.items() if n not in ("wte", "wpe")
    }
    return weights | biases


def simulate(
    prompt: bytes = b"The wafer", n_new: int = 8, *, edge: int = EDGE, engine: str = "auto"
) -> Simulation:
    """Continue `prompt` (a token is a byte) on edge x edge PEs; nine PEs are recorded. Raises ConfigError."""
    room = TINY.n_positions + 1
    require(bool(prompt), "the prompt is empty")
    require(0 < n_new <= room - len(prompt), f"prompt and new tokens must be 2 to {room} bytes together")
    gpt = MeshGPT(random_weights(TINY), TINY, width=edge, height=edge, engine=engine)
    machine = gpt.machine
    sample = sorted({0, edge // 2, edge - 1})
    machine.record([(x, y) for y in sample for x in sample])
    links, busy = machine.state.link_wavelets.copy(), machine.state.busy_cycles.copy()
    at = int(machine.state.clock[0])
    generated = gpt.generate(list(prompt), n_new)
    marks = []
    for step, cycles in enumerate(generated.token_cycles):
        marks.append((f"{'prompt' if step < len(prompt) - 1 else 'new token'}, step {step}", at, at + cycles))
        at += cycles
    return Simulation(
        report=_report(gpt, generated, len(prompt), float((machine.state.busy_cycles - busy).mean())),
        image=machine.image,
        generated=generated,
        placement=gpt.placement(),
        links=(machine.state.link_wavelets - links).reshape(edge, edge, -1),
        memory=memory_parts(machine.image),
        recorded=machine.recorded(),
        marks=marks,
    )


def _n_flops(shape: GPTShape, n_prompt: int, n_steps: int) -> float:
    """Products of all steps; the head only where a token is chosen; attention over what the cache holds."""
    d = shape.d_model
    layer = 4 * d * d + 2 * d * shape.d_ffn
    seen = n_steps * (n_steps + 1) / 2
    head = (n_steps - n_prompt + 1) * shape.vocab_size * d
    return 2.0 * (shape.n_layers * (n_steps * layer + 2 * seen * d) + head)


def _report(gpt: MeshGPT, generated: Generated, n_prompt: int, busy: float) -> Report:
    image, n_steps = gpt.machine.image, len(generated.token_cycles)
    arch = mesh(image.width, image.height)
    seconds = generated.cycles / arch.clock_hz
    used = sum(image.sram_bytes[role] for role in image.role) / image.n_pes
    return Report(
        fidelity="cycle",
        arch=arch.name,
        execution="resident",
        systems=1,
        cycles=float(generated.cycles),
        clock_hz=arch.clock_hz,
        modelled_s=seconds,
        breakdown_cycles={
            "compute": busy,
            "weight_streaming": 0.0,
            "fabric": generated.cycles - busy,
            "reduction": 0.0,
            "host": 0.0,
        },
        share_of_peak=_n_flops(gpt.shape, n_prompt, n_steps) / (seconds * arch.flops_per_s("fp16")),
        samples_per_s=1 / seconds,
        tokens_per_s=n_steps / seconds,
        sram_bytes_per_pe={"used": used, "largest": float(gpt.sram_bytes)},
        fits=True,
        reason=f"{gpt.sram_bytes:,} bytes of code and data in the {arch.sram_bytes:,} of a PE",
        energy_j=arch.power_w * arch.n_pes / arch.n_pes_advertised * seconds,
        description=f"{NAME}, {n_prompt} prompt and {len(generated.tokens)} new tokens",
        assumptions=_assumptions(image.timing),
    )


def _assumptions(timing: Timing) -> tuple[Assumption, ...]:
    figures = mesh(1, 1).quantities()
    known = ("clock_hz", "sram_bytes", "hop_cycles", "ramp_cycles", "link_bits", "n_colors", "power_w")
    source = "wafer/machine/timing.py"
    assumed = {
        **{name: (getattr(timing, name), "cycle") for name in ("task_launch_cycles", "div_cycles")},
        **{name: (getattr(timing, name), "wavelet") for name in ("link_depth", "core_depth", "up_depth")},
        **{f"{f.name.lower()}_cycles": (n, "cycle") for f, n in timing.function_cycles.items()},
    }
    return tuple(
        [Assumption.of(name, figures[name]) for name in known]
        + [
            Assumption(name=name, value=float(n), unit=unit, evidence=Evidence.ASSUMED.value, source=source)
            for name, (n, unit) in assumed.items()
        ]
    )
