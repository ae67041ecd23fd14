"""A recipe becomes a complete TrainConfig with the same figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt.errors import ConfigError
from wafergpt.recipes.compute_optimal import from_params
from wafergpt.runs.pretrain import MICRO_BATCH_TOKENS, pretrain, rate_probe
from wafergpt.training.config import Precision


def test_the_run_is_the_recipe() -> None:
    recipe = from_params(8e6)
    config = pretrain(recipe, Path("data"), seed=3, precision=Precision.FP32)
    assert config.model == recipe.model
    assert (config.batch_size, config.data.seq_len) == (recipe.batch_sequences, recipe.seq_len)
    assert config.total_tokens == recipe.total_tokens
    assert config.schedule.warmup_steps == recipe.warmup_steps
    assert config.schedule.decay.value == recipe.decay.value
    assert (config.optim.peak_lr, config.optim.eps) == (recipe.peak_lr, recipe.adam_eps)
    assert (config.seed, config.precision, config.data.path) == (3, Precision.FP32, Path("data"))


@pytest.mark.parametrize("n_params", [3e5, 3e6, 111e6, 6.7e9])
def test_the_micro_batch_divides_the_batch(n_params: float) -> None:
    config = pretrain(from_params(n_params), Path("data"))
    assert config.batch_size % config.micro_batch_size == 0
    assert config.micro_batch_size * config.data.seq_len <= MICRO_BATCH_TOKENS


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="micro_batch_size"):
        pretrain(from_params(3e6), Path("data"), micro_batch_size=7)


def test_the_probe_takes_one_micro_batch_per_step() -> None:
    probe = rate_probe(from_params(111e6))
    assert probe.batch_size == probe.micro_batch_size == 4
