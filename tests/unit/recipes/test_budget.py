"""Recipes within a budget; that none exceeds it is in tests/property."""

from __future__ import annotations

import math

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import FlopsConvention
from wafergpt.recipes.budget import LARGEST_MEASURED_PARAMS, TrainingRate, from_flops, from_hours
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.recipes.scaling_law import Status


class Machine:
    """A machine of one speed that remembers what it was asked to train."""

    def __init__(self, flops_per_s: float) -> None:
        self.flops_per_s = flops_per_s
        self.measured: list[int] = []

    def measure(self, recipe: Recipe) -> TrainingRate:
        self.measured.append(recipe.model.n_params)
        return TrainingRate(flops_per_s=self.flops_per_s, status=Status.MEASURED, source="a stopwatch")


def test_hours_use_the_measured_rate() -> None:
    machine = Machine(2e11)
    recipe = from_hours(2, machine.measure)
    flops = recipe.model.training_flops(recipe.total_tokens, FlopsConvention.BENCHMARK)
    assert recipe.duration_s == flops / 2e11
    assert 0.6 * 7200 < recipe.duration_s <= 7200
    assert machine.measured[-1] == recipe.model.n_params  # timed on the shape it chose
    assert recipe.notes[-1].status is Status.MEASURED


def test_no_large_model_is_trained_to_measure() -> None:
    machine = Machine(1e15)
    assert from_hours(1000, machine.measure).model.n_params > 1e9
    assert max(machine.measured) < 1.15 * LARGEST_MEASURED_PARAMS


def test_hours_with_a_large_vocabulary_start_from_the_smallest_that_fits() -> None:
    assert from_hours(24, Machine(2e11).measure, vocab_size=50257).model.vocab_size == 50257


@pytest.mark.parametrize("hours", [0.0, -1.0, math.nan, math.inf])
def test_impossible_hours_are_refused_before_measuring(hours: float) -> None:
    machine = Machine(2e11)
    with pytest.raises(ConfigError, match="hours"):
        from_hours(hours, machine.measure)
    assert not machine.measured


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_broken_measurement_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="not positive"):
        from_hours(1, Machine(rate).measure)


@pytest.mark.parametrize(
    ("flops", "message"),
    [(1e10, "too small"), (1e30, "beyond the largest"), (0.0, "positive"), (math.nan, "positive")],
)
def test_budgets_out_of_range_are_refused(flops: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_flops(flops)
