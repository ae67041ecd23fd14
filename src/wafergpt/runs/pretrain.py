"""A recipe and a prepared folder make a complete pre-training run (no torch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.training.config import (
    DataConfig,
    Decay,
    OptimConfig,
    Precision,
    ScheduleConfig,
    TrainConfig,
)

# Tokens of one forward pass where the caller does not say: enough for the matrix products to run at speed,
# few enough that activations stay in hundreds of megabytes below 100M parameters. Our choice.
MICRO_BATCH_TOKENS = 8192


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
        micro_batch_size=_micro_batch_size(recipe) if micro_batch_size is None else micro_batch_size,
        precision=precision,
        seed=seed,
    )


def rate_probe(recipe: Recipe) -> TrainConfig:
    """A run to time `recipe` with: the same model, one micro-batch per optimiser step, no data to read."""
    config = pretrain(recipe, Path("none"))
    return replace(config, batch_size=config.micro_batch_size)


def _micro_batch_size(recipe: Recipe) -> int:
    """The largest divisor of the batch with at most `MICRO_BATCH_TOKENS` tokens, or one sequence."""
    most = max(1, MICRO_BATCH_TOKENS // recipe.seq_len)
    return max(size for size in range(1, most + 1) if recipe.batch_sequences % size == 0)
