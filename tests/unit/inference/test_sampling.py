"""Sampling: which tokens may be drawn, how often, and that a seed decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.inference.sampling import Sampler, SamplingConfig, distribution

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


@pytest.mark.parametrize(
    ("options", "ids", "probabilities"),
    [
        ({}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [1, 3], [4 / 7, 3 / 7]),
        ({"top_k": 9}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.65}, [1, 3], [4 / 7, 3 / 7]),
        ({"top_p": 0.39}, [1], [1.0]),
        ({"top_p": 0.9999}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 3, "top_p": 0.5}, [1, 3], [4 / 7, 3 / 7]),  # of 4/9, 3/9, 2/9: the first two reach 0.5
        ({"temperature": 0.5}, [1, 3, 2, 0], [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 1e-300}, [1, 3, 2, 0], [1, 0, 0, 0]),
    ],
)
def test_distribution(options: dict[str, float], ids: list[int], probabilities: list[float]) -> None:
    order, p = distribution(LOGITS, SamplingConfig(**options))
    assert order.tolist() == ids
    assert p == pytest.approx(probabilities, abs=1e-7)  # the logits are float32


def test_equal_logits_prefer_the_lower_id() -> None:
    order, _ = distribution(np.zeros(5, np.float32), SamplingConfig(top_k=2))
    assert order.tolist() == [0, 1]
    assert Sampler(SamplingConfig(temperature=0)).choose(np.array([0, 7, 7], np.float32)) == 1


def test_draws_follow_the_distribution_and_the_seed() -> None:
    sampler, twin = Sampler(SamplingConfig(seed=1)), Sampler(SamplingConfig(seed=1))
    drawn = [sampler.choose(LOGITS) for _ in range(4000)]
    assert drawn == [twin.choose(LOGITS) for _ in range(4000)]
    other = Sampler(SamplingConfig(seed=2))
    assert drawn != [other.choose(LOGITS) for _ in range(4000)]
    counts = np.bincount(drawn, minlength=4)
    for count, p in zip(counts, [0.1, 0.4, 0.2, 0.3], strict=True):
        assert abs(count - 4000 * p) < 4 * math.sqrt(4000 * p * (1 - p))  # binomial, four deviations


def test_without_a_seed_two_samplers_differ() -> None:
    first, second = Sampler(SamplingConfig()), Sampler(SamplingConfig())
    assert [first.choose(LOGITS) for _ in range(100)] != [second.choose(LOGITS) for _ in range(100)]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf], np.float32)
    assert {Sampler(SamplingConfig(seed=s)).choose(logits) for s in range(50)} == {1}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(bad: float, temperature: float) -> None:
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        Sampler(SamplingConfig(temperature=temperature)).choose(np.array([0, bad, 1], np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_p": math.nan}, {"seed": -1}, {"stop": ("",)}, {"stop": "text"}, {"max_new_tokens": 0},
    ],
)  # fmt: skip
def test_refusals_name_the_field(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).replace("stop", "stop")):
        SamplingConfig(**options)  # type: ignore[arg-type]
