"""A run by name: the published table for published sizes, the family's rules for any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import Parametrization
from wafergpt.model.family import FAMILY
from wafergpt.recipes.cerebras_gpt import RECIPES
from wafergpt.runs.pretrain import is_published, named
from wafergpt.training.config import Decay
from wafergpt.training.schedule import learning_rate

DATA = Path("data")
ONE_BATCH = sorted(set(RECIPES) - {"13B"})


@pytest.mark.parametrize("name", ONE_BATCH)
def test_a_published_size_gives_its_published_run(name: str) -> None:
    config, recipe = named(name, DATA, vocab_size=300), RECIPES[name]
    assert config.model == FAMILY[name].config
    assert config.total_tokens == recipe.n_tokens
    assert config.optim.peak_lr == recipe.peak_lr and config.optim.eps == recipe.adam_eps
    assert config.schedule.warmup_steps == recipe.phases[0].warmup_steps
    assert config.schedule.decay.value == recipe.decay.value
    assert config.batch_size == recipe.phases[0].batch_sequences and config.data.seq_len == 2048
    assert is_published(name)


def test_13b_is_two_runs_along_one_curve_over_tokens() -> None:
    """13b_bs720.yaml, 13b_bs1080.yaml, 1.9.1 README: 57,000 steps of 720, then 38,000 to 116,223 of 1080."""
    first, second = (named(f"13B-phase{i}", DATA, vocab_size=300) for i in (1, 2))
    assert (first.batch_size, second.batch_size) == (720, 1080)
    assert (first.schedule.first_step, first.schedule.last_step) == (0, 57_000)
    assert (second.schedule.first_step, second.schedule.last_step) == (38_000, 116_223)
    assert (first.schedule.total_steps, second.schedule.total_steps) == (254 + 174_081, 169 + 116_054)
    assert first.total_tokens + second.total_tokens == RECIPES["13B"].n_tokens
    rates = [learning_rate(c.schedule, c.optim.peak_lr, n) for c, n in ((first, 57_000), (second, 38_000))]
    # Both curves are rounded to whole steps, so they lie up to one step of phase 1 apart; a step changes the
    # rate by at most 0.9 * peak * pi / 2 / 174,081 = 1e-9, 1e-5 of the 9.4e-5 it is there.
    assert abs(rates[0] - rates[1]) < 1e-5 * rates[0]


def test_111m_is_the_literal_yaml() -> None:
    """Model Zoo Cerebras_GPT/111m.yaml."""
    config = named("111m", DATA, vocab_size=50257)
    assert (config.schedule.warmup_steps, config.schedule.total_steps) == (1525, 9037)
    assert (config.optim.peak_lr, config.batch_size, config.schedule.decay) == (6e-4, 120, Decay.LINEAR)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("2M", Parametrization.STANDARD), ("2M-muP", Parametrization.MUP), ("1.5m-mup", Parametrization.MUP)],
)
def test_another_size_is_derived_for_the_datas_vocabulary(name: str, kind: Parametrization) -> None:
    config = named(name, DATA, vocab_size=1000)
    assert config.model.parametrization is kind and config.model.vocab_size == 1000
    assert 1e6 < config.model.n_params < 3e6
    assert abs(config.total_tokens / config.model.n_params - 20) < 0.5  # tokens per parameter, whole steps
    assert not is_published(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "was not published"),
        ("13B", "2 runs: 13B-phase1, then 13B-phase2 with --set start_from="),
        ("13B-phase3", "13B has no phase 3; it was trained in 2"),
        ("111M-phase1", "111M has no phase 1; it was trained in 1"),
        ("111Mb", "unknown model '111Mb'; did you mean"),
        ("large", "unknown model 'large'"),
        ("0M", "not a positive"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named(name, DATA, vocab_size=1000)
