"""A planner's answers for one model on some systems: fit, step, days, energy, scaling, inference."""

from __future__ import annotations

from dataclasses import dataclass

from wafergpt.config import require
from wafergpt.units import format_bytes, format_count, format_duration, format_figure
from wafergpt.wafer.analytic import inference, training
from wafergpt.wafer.analytic.parameters import PARAMETERS
from wafergpt.wafer.analytic.scaling import scaled
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2, WSE3, Arch

TOKENS_PER_PARAMETER = 20.0  # compute-optimal: Cerebras-GPT, arXiv 2304.03208
NEAR_BEST = 0.95  # the best batch is the smallest that reaches this share of the largest rate
SCALING = (1, 2, 4, 8, 16, 32, 64, 128, 192)
OPTIMIZER_BYTES = 16.0  # per parameter in MemoryX: 32-bit weight, gradient and two moments
PREFILL_EDGE, DECODE_EDGE = 660, 360  # published: WaferLLM's tuned grids for an 8B model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Modelled answers. Rates are of all systems; `batch` counts sequences over all systems."""

    name: str
    arch: str
    systems: int
    seq_len: int
    n_parameters: int
    n_tokens: float
    batch: int
    best_batch_per_system: int
    fits: bool
    why: str
    step_s: float
    n_steps: float
    run_s: float
    energy_j: float
    share_of_peak: float
    samples_per_s: float
    scaling: tuple[tuple[int, float], ...]  # (systems, samples/s) at the same batch per system
    inference_fits: bool
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def best_batch(shape: Shape, *, seq_len: int, arch: Arch = WSE2) -> int:
    """The smallest number of sequences per system that reaches `NEAR_BEST` of the rate of a huge batch."""

    def rate(batch: float) -> float:
        return batch / training.weight_streaming(shape, batch=batch, seq_len=seq_len, arch=arch).total_s

    target, low, high = NEAR_BEST * rate(1e7), 1, 1
    while rate(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rate(middle) >= target else (middle, high)
    return high


def plan(
    name: str,
    shape: Shape,
    *,
    seq_len: int,
    systems: int = 1,
    batch: int | None = None,
    arch: Arch = WSE2,
) -> Plan:
    """Plan the compute-optimal run of `shape` (20 tokens per parameter) on `systems` systems.

    `batch`: sequences per step over all systems; left out, the best batch. Raises ConfigError.
    """
    require(
        1 <= systems <= arch.max_systems, f"systems = {systems}; {arch.name} allows 1 to {arch.max_systems}"
    )
    require(
        batch is None or batch >= systems,
        f"batch = {batch} is less than one sequence for each of {systems} systems",
    )
    best = best_batch(shape, seq_len=seq_len, arch=arch)
    per_system = best if batch is None else batch / systems
    step = training.weight_streaming(shape, batch=per_system, seq_len=seq_len, arch=arch)
    rate = per_system / step.total_s
    total = per_system * systems
    n_parameters = shape.parameters_with_vectors(seq_len)
    n_tokens = TOKENS_PER_PARAMETER * n_parameters
    run_s = n_tokens / (rate * scaled(systems) * seq_len)
    flops = shape.n_layers * shape.layer_flops(seq_len, seq_len) + shape.head_flops(seq_len)
    fits, why = _training_fit(shape, seq_len, arch)
    return Plan(
        name=name,
        arch=arch.name,
        systems=systems,
        seq_len=seq_len,
        n_parameters=n_parameters,
        n_tokens=n_tokens,
        batch=round(total),
        best_batch_per_system=best,
        fits=fits,
        why=why,
        step_s=total / (rate * scaled(systems)),
        n_steps=n_tokens / (total * seq_len),
        run_s=run_s,
        energy_j=run_s * systems * arch.power_w,
        share_of_peak=rate * scaled(systems) / systems * flops / arch.peak_flops_per_s,
        samples_per_s=rate * scaled(systems),
        scaling=tuple((n, rate * scaled(n)) for n in SCALING),
        inference_fits=inference.inference_fits(shape, context=seq_len, arch=arch),
        prefill_tokens_per_s=inference.prefill_tokens_per_s(
            shape, seq_len=seq_len, p=PREFILL_EDGE, arch=arch
        ),
        decode_tokens_per_s=inference.decode_tokens_per_s(shape, context=seq_len, p=DECODE_EDGE, arch=arch),
    )


def _training_fit(shape: Shape, seq_len: int, arch: Arch) -> tuple[bool, str]:
    working = training.working_bytes(shape, seq_len=seq_len)
    state = OPTIMIZER_BYTES * shape.parameters_with_vectors(seq_len)
    room = 0.9 * arch.n_pes * arch.sram_bytes
    return training.training_fits(shape, seq_len=seq_len, arch=arch), (
        f"weights stream ({format_bytes(state)} of state in MemoryX); the wafer holds "
        f"{format_bytes(working)} of activations per sequence in {format_bytes(room)} of SRAM"
    )


def lines(answer: Plan) -> list[str]:
    """The plan as text; every figure is modelled."""
    verdict = "fits" if answer.fits else "does NOT fit"
    kwh = answer.energy_j / 3.6e6
    resident = (
        "weights and cache fit in one wafer's SRAM"
        if answer.inference_fits
        else ("weights and cache do NOT fit in one wafer's SRAM: rates are of layers timed apart")
    )
    note = " (an extrapolation by peak)" if answer.arch == WSE3.name else ""
    found = [
        f"{answer.name} on {answer.systems} x {answer.arch}: all figures are modelled{note}",
        f"parameters: {format_count(answer.n_parameters)}; compute-optimal run: "
        f"{format_count(answer.n_tokens)} tokens, windows of {answer.seq_len:,}",
        f"training {verdict}: {answer.why}",
        *([] if answer.fits else ["what follows would hold if training did fit:"]),
        f"step: {format_duration(answer.step_s)} with {answer.batch:,} sequences; "
        f"{format_figure(answer.samples_per_s)} samples/s, "
        f"{format_figure(answer.samples_per_s * answer.seq_len)} tokens/s, "
        f"{answer.share_of_peak:.1%} of peak",
        f"run: {answer.n_steps:,.0f} steps, {format_figure(answer.run_s / 86400)} days, "
        f"{format_figure(kwh)} kWh",
        f"best batch: {answer.best_batch_per_system:,} sequences per system reach "
        f"{NEAR_BEST:.0%} of the largest rate",
        "scaling at that batch per system (systems: samples/s): "
        + ", ".join(f"{n}: {format_figure(rate)}" for n, rate in answer.scaling),
        f"inference, one sequence: prefill {format_figure(answer.prefill_tokens_per_s)} tokens/s "
        f"on {PREFILL_EDGE} x {PREFILL_EDGE} PEs, "
        f"decode {format_figure(answer.decode_tokens_per_s)} tokens/s "
        f"on {DECODE_EDGE} x {DECODE_EDGE} PEs; {resident}",
    ]
    return found + [
        f"{q.evidence.value}: {n} = {q.value:g} {q.unit} ({q.source})" for n, q in PARAMETERS.items()
    ]
