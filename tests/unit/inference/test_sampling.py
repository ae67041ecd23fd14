"""Sampling: which tokens may be drawn, how often, and that a seed decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.inference.sampling import (
    Sampler,
    SamplingConfig,
    distribution,
    guided,
    inverse,
    most_likely,
    uniform,
)

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


@pytest.mark.parametrize(
    ("options", "ids", "probabilities"),
    [
        ({}, [0, 1, 2, 3], [0.1, 0.4, 0.2, 0.3]),  # nothing is cut: in the order of ids
        ({"top_k": 2}, [1, 3], [4 / 7, 3 / 7]),
        ({"top_k": 9}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.65}, [1, 3], [4 / 7, 3 / 7]),
        ({"top_p": 0.39}, [1], [1.0]),
        ({"top_p": 0.9999}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 3, "top_p": 0.5}, [1, 3], [4 / 7, 3 / 7]),  # of 4/9, 3/9, 2/9: the first two reach 0.5
        ({"temperature": 0.5}, [0, 1, 2, 3], [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 1e-300}, [0, 1, 2, 3], [0, 1, 0, 0]),
        ({"min_p": 0.45}, [1, 3, 2], [4 / 9, 3 / 9, 2 / 9]),
        ({"min_p": 1.0}, [1], [1.0]),
        ({"top_k": 3, "min_p": 0.6}, [1, 3], [4 / 7, 3 / 7]),
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
        {"seed": 2**64}, {"max_new_tokens": 2**21}, {"min_new_tokens": 200}, {"min_new_tokens": -1},
        {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"frequency_penalty": math.inf}, {"temperature": 1e9},
        {"presence_penalty": 101.0}, {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: math.nan}},
        {"stop_token_ids": (-1,)}, {"stop": ("x",) * 65}, {"stop": ("x" * 5000,)},
    ],
)  # fmt: skip
def test_refusals_name_the_field(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).replace("stop", "stop")):
        SamplingConfig(**options)  # type: ignore[arg-type]


def test_one_draw_depends_on_seed_sample_and_position_alone() -> None:
    drawn = {uniform(*key) for key in np.ndindex(12, 12, 12)}
    assert len(drawn) == 12**3 and all(0 <= u < 1 for u in drawn)
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    late = Sampler(SamplingConfig(seed=1), [0, 1, 2])
    early = Sampler(SamplingConfig(seed=1), [0, 1])
    early.take(2)
    assert late.choose(LOGITS) == early.choose(LOGITS), "the position counts, not the number of draws"


def test_uniform_numbers_are_uniform() -> None:
    """Chi-square of 10^5 draws in 100 cells: mean 99, deviation 14; five deviations."""
    counts = np.bincount([int(100 * uniform(7, 0, i)) for i in range(100_000)], minlength=100)
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 99 + 5 * math.sqrt(2 * 99)


def test_top_p_sorts_no_more_than_it_must_and_gives_the_same() -> None:
    random = np.random.default_rng(0)
    for scale, top_p in ((0.001, 0.9), (0.001, 0.999999), (1.0, 0.5), (6.0, 0.95), (0.0, 0.3)):
        logits = (scale * random.integers(-9, 9, 20_000)).astype(np.float32)  # many equals
        ids, p = distribution(logits, SamplingConfig(top_p=top_p))
        weights = np.exp(logits.astype(np.float64) - logits.max())
        order = np.argsort(-weights, kind="stable")
        n_kept = int(np.searchsorted((weights / weights.sum())[order].cumsum(), top_p)) + 1
        assert abs(len(ids) - n_kept) <= 1 and ids[:n_kept].tolist() == order[: len(ids)][:n_kept].tolist()
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_most_likely_prefers_the_lower_index() -> None:
    scores = np.array([1.0, 3, 2, 3, 2, 0])
    assert [most_likely(scores, n).tolist() for n in (1, 2, 3, 9)] == [
        [1], [1, 3], [1, 3, 2], [1, 3, 2, 4, 0, 5],
    ]  # fmt: skip


def test_penalties_and_bias() -> None:
    logits = np.array([2, -2, 1, 0, 0.5], np.float32)
    sampler = Sampler(
        SamplingConfig(
            repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=1.0, logit_bias={4: 1.5}
        ),
        [0, 1],
    )
    for token_id in (2, 2, 3):
        sampler.take(token_id)
    # 0, 1: repetition alone (of the prompt); 2 halved, written twice; 3 zero, written once; 4 biased
    assert sampler.adjusted(logits).tolist() == [1, -4, 0.5 - 0.5 - 1, -0.25 - 1, 2]
    assert logits.tolist() == [2, -2, 1, 0, 0.5], "the model's row is not changed"


def test_endings_wait_for_the_minimum() -> None:
    config = SamplingConfig(temperature=0, min_new_tokens=2, stop_token_ids=(3,))
    sampler = Sampler(config, ending_ids=[1])
    assert [sampler.choose(LOGITS) for _ in range(3)] == [2, 2, 1]


def test_a_mask_decides_and_is_checked() -> None:
    asked: list[list[int]] = []

    def odd_then_zero(new_ids: list[int]) -> np.ndarray:
        asked.append(list(new_ids))
        return np.arange(4) % 2 == 1 if not new_ids else np.arange(4) == 0

    sampler = Sampler(SamplingConfig(seed=0), mask=odd_then_zero)
    assert sampler.choose(LOGITS) in (1, 3) and sampler.choose(LOGITS) == 0
    assert [len(ids) for ids in asked] == [0, 1]
    for mask, message in (
        (lambda _: np.zeros(4, bool), "no token"),
        (lambda _: np.ones(3, bool), "4 booleans"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sampler(SamplingConfig(), mask=mask).choose(LOGITS)


def test_a_guide_is_checked() -> None:
    assert guided(None, [1], LOGITS) is LOGITS
    assert guided(lambda ids, logits: logits * len(ids), [1, 2], LOGITS).tolist() == (LOGITS * 2).tolist()
    for bad in (lambda ids, logits: logits[:3], lambda ids, logits: logits.astype(np.float64)):
        with pytest.raises(ConfigError, match="4 float32 logits"):
            guided(bad, [], LOGITS)


def test_a_copy_goes_its_own_way() -> None:
    first = Sampler(SamplingConfig(seed=3, frequency_penalty=1.0), [1], sample=2)
    first.take(3)
    twin = first.copy()
    assert first.choose(LOGITS) == twin.choose(LOGITS)
    first.take(0)
    assert twin.new_ids != first.new_ids
    assert twin.adjusted(LOGITS).tolist() != first.adjusted(LOGITS).tolist()


@pytest.mark.parametrize("size", [1, 63, 64, 129, 1000, 5000])
def test_the_most_likely_are_those_of_a_stable_sort(size: int) -> None:
    """With equals, with forbidden tokens, below and above what the first sieve takes."""
    rng = np.random.default_rng(size)
    plain = rng.standard_normal(size)
    equals = np.round(plain * 3).astype(np.float32)
    for scores in (plain, equals, np.where(rng.random(size) < 0.7, -np.inf, equals)):
        for n in (1, 2, 15, 16, 77, 256, size, size + 5):
            assert np.array_equal(most_likely(scores, n), np.argsort(-scores, kind="stable")[:n])


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_a_draw_in_blocks_is_where_the_whole_sum_passes_it(size: int) -> None:
    rng = np.random.default_rng(size)
    for power in (1, 9):
        p = rng.random(size) ** power * (rng.random(size) < 0.5)
        p[rng.integers(size)] = 1
        total = p.cumsum()
        for drawn in (0.0, 1 - 2.0**-53, *rng.random(200)):
            found = inverse(p, drawn)
            assert found == np.searchsorted(total, drawn * total[-1], side="right") or np.isclose(
                total[found], drawn * total[-1], rtol=1e-13
            )
            assert p[found] > 0 or drawn > 1 - 1e-15
