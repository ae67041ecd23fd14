"""The package from Python: load a trained model, generate text, train. Picks the backend, wires the parts.

What needs torch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.backends.backend import Backend
from wafergpt.checkpoints.checkpoint import Skipped
from wafergpt.checkpoints.native import load_checkpoint
from wafergpt.config import from_dict, require
from wafergpt.errors import CheckpointError
from wafergpt.evaluation.report import EvaluationReport
from wafergpt.inference import generate as generation
from wafergpt.inference.generate import Generation, Piece
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.model.config import FlopsConvention, GPTConfig
from wafergpt.recipes.budget import TrainingRate
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.recipes.scaling_law import Status
from wafergpt.runs.pretrain import rate_probe
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.units import format_count, format_flops

__all__ = ["LoadedModel", "SamplingConfig", "evaluate", "generate", "load"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model ready to use, with its tokenizer and where it came from."""

    config: GPTConfig
    tokenizer: Tokenizer
    backend: Backend
    checkpoint_path: Path
    step: int
    skipped: tuple[Skipped, ...]  # newer checkpoints that did not verify, and why

    def generate(self, prompt: str, sampling: SamplingConfig | None = None, **options: Any) -> Generation:
        """Continue `prompt`. Give a `SamplingConfig`, or its fields as options. Raises ConfigError."""
        return generation.generate(self.backend, self.tokenizer, prompt, _sampling(sampling, options))

    def stream(self, prompt: str, sampling: SamplingConfig | None = None, **options: Any) -> Iterator[Piece]:
        """As `generate`, piece by piece while the model writes. Raises ConfigError."""
        return generation.stream(self.backend, self.tokenizer, prompt, _sampling(sampling, options))


def _sampling(sampling: SamplingConfig | None, options: dict[str, Any]) -> SamplingConfig:
    require(sampling is None or not options, "give either a SamplingConfig or its fields, not both")
    return sampling or from_dict(SamplingConfig, options)


def load(directory: Path | str) -> LoadedModel:
    """Load a run folder (its newest checkpoint that verifies) or one checkpoint folder, float32, on the CPU.

    Raises CheckpointError, StorageError, DataError.
    """
    from wafergpt.backends.torch_eager import TorchEager
    from wafergpt.model.gpt import GPT

    checkpoint = load_checkpoint(Path(directory), groups=["model"])
    if "tokenizer.json" not in checkpoint.blobs:
        raise CheckpointError(f"checkpoint '{checkpoint.path}' holds no tokenizer")
    model = GPT.from_checkpoint(checkpoint)
    return LoadedModel(
        config=model.config,
        tokenizer=Tokenizer.from_bytes(checkpoint.blobs["tokenizer.json"]),
        backend=TorchEager(model),
        checkpoint_path=checkpoint.path,
        step=checkpoint.step,
        skipped=checkpoint.skipped,
    )


def generate(
    model: LoadedModel | Path | str, prompt: str, sampling: SamplingConfig | None = None, **options: Any
) -> Generation:
    """Continue `prompt` with a loaded model or the one in a folder.

    Give a `SamplingConfig`, or its fields as options: temperature, top_k, top_p, seed, stop,
    max_new_tokens. Raises ConfigError for an unknown option or a prompt that leaves no room in the
    context window; what `load` raises for a folder.
    """
    sampling = _sampling(sampling, options)
    loaded = model if isinstance(model, LoadedModel) else load(model)
    return loaded.generate(prompt, sampling)


def evaluate(
    model: LoadedModel | Path | str,
    data: Sequence[Path | str],
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    baselines: bool = False,
) -> EvaluationReport:
    """Measure a model on held-out text: nats/token, perplexity and bits/byte; its row is the first.

    `data` is one prepared folder (its held-out part) or text files. `seq_len` (the model's) and `stride`
    (half of it) set the windows; with `baselines` gzip, xz and n-gram models follow. Raises DataError,
    ConfigError, NonFiniteError; what `load` raises for a folder.
    """
    from wafergpt.evaluation.held_out import HeldOut, evaluate_text

    loaded = model if isinstance(model, LoadedModel) else load(model)
    held_out = HeldOut.open([Path(path) for path in data], loaded.tokenizer)
    return evaluate_text(
        loaded.backend,
        loaded.tokenizer,
        held_out,
        name=f"this model ({format_count(loaded.config.n_params)} parameters)",
        seq_len=seq_len,
        stride=stride,
        with_baselines=baselines,
    )


def measure_training_rate(recipe: Recipe, duration_s: float = 4.0) -> TrainingRate:
    """How fast this machine trains `recipe`'s model: real optimiser steps on random tokens, bfloat16.

    Timed for about `duration_s` after a first step of warm-up.
    """
    from wafergpt.training.loop import measure_tokens_per_s

    tokens_per_s = measure_tokens_per_s(rate_probe(recipe), duration_s)
    flops_per_token = recipe.model.flops_per_token(FlopsConvention.BENCHMARK, recipe.seq_len)
    size = format_count(recipe.model.n_params)
    return TrainingRate(
        flops_per_s=tokens_per_s * flops_per_token,
        status=Status.MEASURED,
        source=f"{tokens_per_s:,.0f} tokens/s with {size} parameters in bf16, "
        f"{format_flops(tokens_per_s * flops_per_token, per_second=True)}",
    )
