"""From a budget of FLOPs or hours to the largest compute-optimal recipe within it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from wafergpt.errors import ConfigError
from wafergpt.model.config import FlopsConvention, Parametrization
from wafergpt.recipes.compute_optimal import Note, Recipe, from_params
from wafergpt.recipes.scaling_law import Status
from wafergpt.units import format_count

FIRST_GUESS_PARAMS = 3e6
LARGEST_MEASURED_PARAMS = 3e7  # its state is half a gigabyte, its step a second or two on two cores


@dataclass(frozen=True, kw_only=True)
class TrainingRate:
    """How fast this machine trains, in FLOP/s by `FlopsConvention.BENCHMARK`, and how that is known."""

    flops_per_s: float
    status: Status
    source: str


def from_flops(
    flops: float,
    *,
    parametrization: Parametrization = Parametrization.MUP,
    vocab_size: int | None = None,
    seq_len: int | None = None,
) -> Recipe:
    """The largest recipe whose training costs at most `flops` (headline convention).

    Raises ConfigError when the budget is below the smallest recipe or above the largest.
    """

    def recipe(n_params: float) -> Recipe:
        return from_params(n_params, parametrization=parametrization, vocab_size=vocab_size, seq_len=seq_len)

    return _largest_within(flops, lambda r: r.flops, recipe, "FLOPs")


def from_hours(
    hours: float,
    measure: Callable[[Recipe], TrainingRate],
    *,
    parametrization: Parametrization = Parametrization.MUP,
    vocab_size: int | None = None,
    seq_len: int | None = None,
) -> Recipe:
    """The largest recipe that trains within `hours` at the rate `measure` finds for it.

    The rate depends on the shape and the shape on the rate, so it is measured twice: on a first guess, and
    on what that rate leads to (at most `LARGEST_MEASURED_PARAMS`; a larger model is taken to train as
    fast). Raises ConfigError when the time is below what the smallest recipe takes or above the
    largest's, or when a rate is not positive.
    """
    if not (math.isfinite(hours) and hours > 0):
        raise ConfigError(f"hours = {hours!r} must be positive and finite")

    def recipe(n_params: float) -> Recipe:
        return from_params(n_params, parametrization=parametrization, vocab_size=vocab_size, seq_len=seq_len)

    def within(rate: TrainingRate) -> Recipe:
        return _largest_within(hours * 3600, lambda r: _duration_s(r, rate), recipe, "seconds")

    first, smallest = _smallest(recipe)
    guess = within(_checked(measure(recipe(max(FIRST_GUESS_PARAMS, _REQUESTS[first])))))
    measured = guess
    if guess.model.n_params > LARGEST_MEASURED_PARAMS:
        measured = recipe(max(LARGEST_MEASURED_PARAMS, smallest.model.n_params))
    rate = _checked(measure(measured))
    chosen = within(rate)
    note = Note(figure="duration", status=rate.status, text=rate.source)
    return replace(chosen, duration_s=_duration_s(chosen, rate), notes=(*chosen.notes, note))


def _checked(rate: TrainingRate) -> TrainingRate:
    if not (math.isfinite(rate.flops_per_s) and rate.flops_per_s > 0):
        raise ConfigError(f"the measured training rate of {rate.flops_per_s!r} FLOP/s is not positive")
    return rate


def _duration_s(recipe: Recipe, rate: TrainingRate) -> float:
    flops = recipe.model.training_flops(recipe.total_tokens, FlopsConvention.BENCHMARK)
    return flops / rate.flops_per_s


# Parameter counts tried for a budget: 0.1M to 400B, 2.3 % apart, finer than the shapes themselves.
_REQUESTS = tuple(10 ** (exponent / 100) for exponent in range(500, 1161))


def _largest_within(
    budget: float, cost: Callable[[Recipe], float], recipe: Callable[[float], Recipe], unit: str
) -> Recipe:
    """The recipe of about the largest request whose cost is within `budget`, by bisection.

    Costs rise with the request, by at most 1.44 from one shape to the next, but for dips of up to 15 % where
    the sequence length changes; near a dip the choice may lie that much below the largest, never above.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise ConfigError(f"a budget of {budget!r} {unit} must be positive and finite")
    first, smallest = _smallest(recipe)
    if cost(smallest) > budget:
        raise ConfigError(
            f"a budget of {budget:.3g} {unit} is too small: the smallest recipe, "
            f"{format_count(smallest.model.n_params)} parameters, takes {cost(smallest):.3g}"
        )
    low, high, best = first + 1, len(_REQUESTS) - 1, smallest
    while low <= high:
        middle = (low + high) // 2
        candidate = recipe(_REQUESTS[middle])
        if cost(candidate) <= budget:
            best, low = candidate, middle + 1
        else:
            high = middle - 1
    if low == len(_REQUESTS) and cost(best) < 0.5 * budget:
        raise ConfigError(
            f"a budget of {budget:.3g} {unit} is beyond the largest recipe, "
            f"{format_count(best.model.n_params)} parameters, which takes {cost(best):.3g}"
        )
    return best


def _smallest(recipe: Callable[[float], Recipe]) -> tuple[int, Recipe]:
    """The first request that some shape meets (a large vocabulary rules out small models), with its index."""
    refusal = None
    for index, n_params in enumerate(_REQUESTS):
        try:
            return index, recipe(n_params)
        except ConfigError as error:
            refusal = error
    assert refusal is not None
    raise refusal
