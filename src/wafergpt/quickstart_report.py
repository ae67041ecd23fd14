"""What the quickstart leaves behind for its reader: `report.md` and `report.json`. Layer: beside `api`."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from wafergpt import quickstart_wafer
from wafergpt.checkpoints.files import write_atomic
from wafergpt.config import to_dict
from wafergpt.evaluation.report import EvaluationReport, Kind
from wafergpt.quickstart_wafer import WaferView
from wafergpt.recipes import compute_optimal
from wafergpt.runs.quickstart import QuickstartConfig
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.units import format_count, format_duration, format_flops

CURVE = "run/loss.png"
WAFER_PAGE = "wafer.html"


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """The text the model read."""

    description: str
    licence: str
    n_train_tokens: int
    n_held_out_tokens: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything the report states; all of it decided or measured in the run it describes."""

    config: QuickstartConfig
    run: TrainConfig
    source: SourceText
    rates_tokens_per_s: dict[str, float]
    evaluation: EvaluationReport
    samples: tuple[tuple[str, str], ...]  # (prompt, continuation)
    departures: tuple[str, ...]
    peak_flops: float | None  # measured matmul peak in the run's compute type, FLOP/s
    trained_s: float  # time in steps
    n_skipped: int
    parts_s: dict[str, float]
    wafer: WaferView

    @property
    def tokens_per_s(self) -> float:
        """Speed of the training steps."""
        return self.run.total_tokens / self.trained_s

    @property
    def flops_per_s(self) -> float:
        """Model FLOP/s in the benchmark convention, 6 (12 L D^2 + V D) + 6 L D T per token."""
        model = self.run.model
        matmuls = 12 * model.n_layers * model.d_model**2 + model.vocab_size * model.d_model
        per_token = 6 * matmuls + 6 * model.n_layers * model.d_model * self.run.data.seq_len
        return per_token * self.tokens_per_s


def write_report(folder: Path, facts: Facts) -> Path:
    """Write both files; returns the path of `report.md`. Raises StorageError."""
    plain = to_dict(facts) | {"tokens_per_s": facts.tokens_per_s, "flops_per_s": facts.flops_per_s}
    write_atomic(folder / "report.json", (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode())
    path = folder / "report.md"
    write_atomic(path, _markdown(facts).encode())
    return path


def _markdown(facts: Facts) -> str:
    sections = (_head, _result, _samples, _recipe, _time, _wafer, _next)
    return "\n".join(section(facts) for section in sections)


def _head(facts: Facts) -> str:
    model, source = facts.run.model, facts.source
    shape = f"{model.n_layers} layers, d_model {model.d_model}, {model.n_heads} heads"
    kind = f"vocabulary {model.vocab_size}, {model.parametrization.value}"
    return f"""\
# A Cerebras-GPT of {format_count(model.n_params)} parameters, pre-trained here

| | |
|---|---|
| model | {shape}, {model.max_seq_len} positions, {kind} |
| text | {source.description} |
| licence | {source.licence} |
| trained on | {source.n_train_tokens:,} tokens, {facts.run.total_tokens:,} seen |
| held out | {source.n_held_out_tokens:,} tokens, never trained on |
| machine | {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()} |
"""


def _result(facts: Facts) -> str:
    evaluation = facts.evaluation
    model = next(row for row in evaluation.rows if row.kind is Kind.MODEL)
    best = evaluation.best_baseline
    verdict = ""
    if best is not None:
        word = "beats" if evaluation.model_beats_baselines else "does NOT beat"
        verdict = (
            f"\nThe model, at {model.bits_per_byte:.4f} bits/byte, {word} the best baseline,"
            f" {best.name} at {best.bits_per_byte:.4f}.\n"
        )
    return f"## How good it is\n\n{evaluation.to_markdown()}{verdict}\n![loss curve]({CURVE})\n"


def _samples(facts: Facts) -> str:
    blocks = "\n\n".join(f"**{prompt}**{text}" for prompt, text in facts.samples)
    return f"## What it writes\n\nTemperature 0.7, top-p 0.9, seed {facts.config.seed}.\n\n{blocks}\n"


def _recipe(facts: Facts) -> str:
    run = facts.run
    lines = [
        f"- {run.schedule.total_steps:,} steps of {run.tokens_per_step:,} tokens; AdamW"
        f" {run.optim.betas}, weight decay {run.optim.weight_decay}, clipping at {run.optim.clip_norm}",
        f"- base learning rate {run.optim.peak_lr:g} (muP, tuned on the 40M proxy), warm-up"
        f" {run.schedule.warmup_steps:,} steps, {run.schedule.decay.value} decay to"
        f" {run.schedule.final_fraction:.0%}",
        f"- precision {run.precision.value}"
        + (" (int8 products, float32 masters)" if run.precision is Precision.INT8 else ""),
        f"- steps skipped because a number was not finite: {facts.n_skipped}",
    ]
    kept = "\n".join(lines)
    left = "\n".join(f"- {line}" for line in facts.departures) or "- nothing"
    return f"## The recipe\n\n{kept}\n\nNot kept of the published recipe:\n\n{left}\n"


def _time(facts: Facts) -> str:
    rows = "\n".join(f"| {name} | {format_duration(took_s)} |" for name, took_s in facts.parts_s.items())
    speeds = ", ".join(f"{name} {rate:,.0f}" for name, rate in facts.rates_tokens_per_s.items())
    share = ""
    if facts.peak_flops:
        share = (
            f"\nThat is {format_flops(facts.flops_per_s, True)} of model arithmetic,"
            f" {facts.flops_per_s / facts.peak_flops:.0%} of the {format_flops(facts.peak_flops, True)} this"
            " machine's library reaches in a large bfloat16 matrix product.\n"
        )
    return (
        f"## Where the time went\n\n| part | took |\n|---|---:|\n{rows}\n\n"
        f"Training ran at {facts.tokens_per_s:,.0f} tokens/s (tried before: {speeds}).\n{share}"
    )


def _wafer(facts: Facts) -> str:
    return quickstart_wafer.markdown(facts.wafer, WAFER_PAGE)


def _next(facts: Facts) -> str:
    full_run = compute_optimal.training_tokens(facts.run.model.n_params)
    return f"""\
## What to try next

```text
wafergpt generate --model run "{facts.config.prompts[0]}"
wafergpt eval --model run --data data --baselines
wafergpt quickstart --minutes 20
wafergpt recipe --params 8M
```

The recipe's own length for this model is {format_count(full_run)} tokens, about
{format_duration(full_run / facts.tokens_per_s)} at the speed above.
"""
