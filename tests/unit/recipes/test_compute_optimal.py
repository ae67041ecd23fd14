"""The rules of a derived recipe: at published sizes they give the published recipe."""

from __future__ import annotations

import math

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.recipes.cerebras_gpt import RECIPES, Decay
from wafergpt.recipes.compute_optimal import (
    BATCH_EXPONENT,
    batch_sequences,
    batch_tokens,
    for_config,
    from_params,
    peak_lr,
    warmup_steps,
)
from wafergpt.recipes.scaling_law import Status

STANDARD = ("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")


@pytest.mark.parametrize("size", STANDARD)
def test_a_published_size_gives_its_published_recipe(size: str) -> None:
    published = RECIPES[size]
    recipe = from_params(published.config.n_params, parametrization=Parametrization.STANDARD)
    last = published.phases[-1]
    assert recipe.batch_sequences == last.batch_sequences
    assert (recipe.warmup_steps, recipe.total_steps) == (last.warmup_steps, last.last_step)
    assert (recipe.peak_lr, recipe.adam_eps) == (published.peak_lr, published.adam_eps)
    assert recipe.end_lr == published.end_lr
    assert recipe.expected_loss == pytest.approx(published.predicted_loss, rel=1e-4)  # whole steps


def test_the_batch_exponent_is_the_slope_of_the_published_table() -> None:
    points = [(math.log(r.n_tokens), math.log(r.phases[-1].batch_tokens)) for r in map(RECIPES.get, STANDARD)]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    assert round(slope, 2) == BATCH_EXPONENT


def test_the_batch_is_bounded_and_whole() -> None:
    assert batch_tokens(1e15) == 2_211_840
    assert batch_sequences(1e3, 2048) == 8
    assert batch_sequences(5e7, 256) % 8 == 0


def test_the_warm_up_is_ten_percent_of_a_short_run() -> None:
    assert warmup_steps(800e6, 524_288) == 152  # the 40M proxy
    assert warmup_steps(1e6, 10_000) == 10
    assert warmup_steps(5e4, 10_000) == 0


def test_mup_takes_the_proxys_rate_at_every_width() -> None:
    configs = [
        GPTConfig(d_model=d, n_layers=4, n_heads=4, parametrization=Parametrization.MUP) for d in (128, 512)
    ]
    assert [peak_lr(config) for config in configs] == [6e-3, 6e-3]


def test_every_figure_says_where_it_comes_from() -> None:
    recipe = from_params(3e6)
    notes = {note.figure: note for note in recipe.notes}
    expected = {"shape", "vocabulary", "sequence length", "tokens", "batch", "peak LR", "warm-up", "decay"}
    assert expected <= set(notes)
    assert notes["batch"].status is notes["vocabulary"].status is Status.ASSUMED
    assert notes["tokens"].status is Status.PUBLISHED
    assert "narrower than the proxy" in notes["peak LR"].text
    assert "extrapolated" in notes["expected loss"].text
    assert recipe.decay is Decay.LINEAR


def test_another_number_of_tokens_is_obeyed_and_labelled() -> None:
    config = from_params(3e6).model
    recipe = for_config(config, n_tokens=10e6)
    assert recipe.total_tokens <= 10e6 < recipe.total_tokens + recipe.batch_tokens
    assert recipe.expected_loss is None  # the law holds near 20 tokens per parameter
    assert {note.figure: note for note in recipe.notes}["tokens"].status is Status.ASSUMED


@pytest.mark.parametrize("n_tokens", [0.0, -1.0, math.nan, math.inf, 100.0])
def test_too_few_tokens_are_refused(n_tokens: float) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        for_config(from_params(3e6).model, n_tokens=n_tokens)
