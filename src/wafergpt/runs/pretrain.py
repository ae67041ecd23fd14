"""A recipe and a prepared folder make a complete pre-training run (no torch)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.model import family
from wafergpt.model.config import Parametrization
from wafergpt.recipes import cerebras_gpt, compute_optimal
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.training.config import (
    DataConfig,
    Decay,
    OptimConfig,
    Precision,
    ScheduleConfig,
    TrainConfig,
)
from wafergpt.units import parse_count

# Tokens of one forward pass where the caller does not say: enough for the matrix products to run at speed,
# few enough that activations stay in hundreds of megabytes below 100M parameters. Our choice.
MICRO_BATCH_TOKENS = 8192

_PHASE = re.compile(r"(.+)-phase(\d)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?[KMB])(-muP)?", re.IGNORECASE)


def named(name: str, data_path: Path, *, vocab_size: int) -> TrainConfig:
    """The run called `name` over a folder prepared with a vocabulary of `vocab_size`.

    A published size (`111M`, `1.3B-muP`, ...) gives its published recipe; any other size (`4M`, `8M-muP`) one
    derived by the family's rules for that vocabulary, standard or muP as the name says. 13B is two runs,
    `13B-phase1` and `13B-phase2`; the second needs `start_from`, the folder of the first.

    Raises ConfigError for an unknown name, GPT-2's sizes (no recipe was published) and plain 13B.
    """
    phase = _PHASE.fullmatch(name.strip())
    if phase is not None:
        return _one_phase(cerebras_gpt.get(phase[1]), int(phase[2]), data_path)
    size = _SIZE.fullmatch(name.strip())
    if size is None or name.strip().lower() in (known.lower() for known in family.FAMILY):
        return pretrain(_published(cerebras_gpt.get(name)), data_path)
    kind = Parametrization.MUP if size[2] else Parametrization.STANDARD
    n_params = parse_count(size[1])
    recipe = compute_optimal.from_params(n_params, parametrization=kind, vocab_size=vocab_size)
    return pretrain(recipe, data_path)


def is_published(name: str) -> bool:
    """Whether `named` takes this name from the published table."""
    try:
        cerebras_gpt.get(name)
    except ConfigError:
        return False
    return True


def _published(published: cerebras_gpt.PublishedRecipe) -> Recipe:
    require(
        len(published.phases) == 1,
        f"{published.name} was trained in {len(published.phases)} phases of different batch sizes, which are"
        f" {len(published.phases)} runs: {published.name}-phase1, then {published.name}-phase2 with"
        " --set start_from=<folder of phase 1>",
    )
    phase = published.phases[0]
    return Recipe(
        model=published.config,
        batch_sequences=phase.batch_sequences,
        total_steps=phase.n_steps,
        warmup_steps=phase.warmup_steps,
        peak_lr=published.peak_lr,
        decay=published.decay,
        adam_eps=published.adam_eps,
    )


def _one_phase(published: cerebras_gpt.PublishedRecipe, number: int, data_path: Path) -> TrainConfig:
    """Phase `number`, from 1, of a run that was trained in several."""
    require(
        1 <= number <= len(published.phases) > 1,
        f"{published.name} has no phase {number}; it was trained in {len(published.phases)}",
    )
    phase = published.phases[number - 1]
    whole = replace(published, phases=(replace(phase, first_step=0, last_step=phase.n_curve_steps),))
    config = pretrain(_published(whole), data_path)
    stop_step = None if phase.last_step == phase.n_curve_steps else phase.last_step
    schedule = replace(config.schedule, first_step=phase.first_step, stop_step=stop_step)
    return replace(config, schedule=schedule)


def pretrain(
    recipe: Recipe,
    data_path: Path,
    *,
    micro_batch_size: int | None = None,
    precision: Precision = Precision.BF16,
    seed: int = 0,
) -> TrainConfig:
    """The run of `recipe` over the folder `data_path`; `micro_batch_size` counts sequences.

    Raises ConfigError when `micro_batch_size` does not divide the recipe's batch.
    """
    return TrainConfig(
        model=recipe.model,
        data=DataConfig(path=data_path, seq_len=recipe.seq_len),
        optim=OptimConfig(
            peak_lr=recipe.peak_lr,
            betas=recipe.adam_betas,
            eps=recipe.adam_eps,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
        ),
        schedule=ScheduleConfig(
            warmup_steps=recipe.warmup_steps,
            total_steps=recipe.total_steps,
            decay=Decay(recipe.decay.value),
            final_fraction=recipe.final_lr_fraction,
        ),
        batch_size=recipe.batch_sequences,
        micro_batch_size=_default(recipe) if micro_batch_size is None else micro_batch_size,
        precision=precision,
        seed=seed,
    )


def rate_probe(recipe: Recipe) -> TrainConfig:
    """A run to time `recipe` with: the same model, one micro-batch per optimiser step, no data to read."""
    config = pretrain(recipe, Path("none"))
    return replace(config, batch_size=config.micro_batch_size)


def micro_batch_size(batch_size: int, seq_len: int) -> int:
    """The largest divisor of the batch of at most `MICRO_BATCH_TOKENS` tokens, or one; in sequences."""
    most = max(1, MICRO_BATCH_TOKENS // seq_len)
    return max(size for size in range(1, most + 1) if batch_size % size == 0)


def _default(recipe: Recipe) -> int:
    return micro_batch_size(recipe.batch_sequences, recipe.seq_len)
