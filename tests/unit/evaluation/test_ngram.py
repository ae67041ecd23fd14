"""Kneser-Ney against a slow reading of its definition, and against the axioms of probability."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.errors import ConfigError, DataError
from wafergpt.evaluation import ngram
from wafergpt.evaluation.ngram import KneserNey

EOT = 0
# Sums of at most 50 float64 products of numbers <= 1, in two different orders: 50 * 2^-53 relative each.
TOLERANCE = 1e-13


class SlowKneserNey:
    """The equations at the head of ngram.py, with dictionaries and no cleverness."""

    def __init__(self, stream: list[int], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        text = [EOT] * (order - 1) + stream
        grams = [tuple(text[i : i + order]) for i in range(len(stream))]
        self.counts: dict[int, Counter] = {order: Counter(grams)}
        for k in range(order - 1, 0, -1):
            left = defaultdict(set)
            for gram in self.counts[k + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[k] = Counter({gram: len(tokens) for gram, tokens in left.items()})
        self.discount = {k: self._discounts(list(c.values())) for k, c in self.counts.items()}

    @staticmethod
    def _discounts(values: list[int]) -> list[float]:
        n1, n2, n3, n4 = (values.count(i) for i in (1, 2, 3, 4))
        found = [0.5, 1.0, 1.5]
        if n1:
            y = n1 / (n1 + 2 * n2)
            for i, (low, high) in enumerate([(n1, n2), (n2, n3), (n3, n4)], start=1):
                estimate = i - (i + 1) * y * high / low if low else -1
                if 0 < estimate <= i:
                    found[i - 1] = estimate
        return found

    def probability(self, context: tuple[int, ...], token: int) -> float:
        context = context[len(context) - self.order + 1 :] if self.order > 1 else ()
        return self._probability(context, token)

    def _probability(self, context: tuple[int, ...], token: int) -> float:
        k = len(context) + 1
        lower = self._probability(context[1:], token) if context else 1 / self.vocab_size
        followers = {gram: c for gram, c in self.counts[k].items() if gram[:-1] == context}
        total = sum(followers.values())
        if total == 0:
            return lower
        discount = self.discount[k]
        count = followers.get((*context, token), 0)
        kept = count - discount[min(count, 3) - 1] if count else 0.0
        removed = sum(discount[min(c, 3) - 1] for c in followers.values())
        return kept / total + removed / total * lower


def zipf_stream(seed: int, n: int, vocab_size: int) -> np.ndarray:
    weights = 1 / np.arange(1, vocab_size + 1)
    return np.random.default_rng(seed).choice(vocab_size, size=n, p=weights / weights.sum())


def train(stream: np.ndarray, order: int, vocab_size: int) -> KneserNey:
    return KneserNey.train(stream, order=order, vocab_size=vocab_size, end_of_text_id=EOT)


def worst_difference(stream: np.ndarray, held_out: np.ndarray, order: int, vocab_size: int) -> float:
    """Largest relative difference of a probability between the fast model and the slow one."""
    slow = SlowKneserNey(stream.tolist(), order, vocab_size)
    text = (EOT,) * (order - 1) + tuple(held_out.tolist())
    expected = [slow.probability(text[: i + order - 1], text[i + order - 1]) for i in range(len(held_out))]
    found = np.exp(-train(stream, order, vocab_size).score(held_out))
    return float(np.max(np.abs(found / expected - 1)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_matches_the_slow_definition(order: int) -> None:
    stream = zipf_stream(1, 400, 12)
    held_out = zipf_stream(2, 60, 13) % 13  # token 12 is never seen in training
    assert worst_difference(stream, held_out, order, 13) < TOLERANCE


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    context=st.lists(st.integers(0, 7), max_size=5),
    order=st.integers(1, 5),
)
def test_any_text_gives_a_probability_distribution(tokens: list[int], context: list[int], order: int) -> None:
    model = train(np.array(tokens), order, 8)
    distribution = model.distribution(np.array(context, dtype=np.int64))
    assert np.all(distribution > 0)
    assert abs(math.fsum(distribution) - 1) < TOLERANCE
    slow = SlowKneserNey(tokens, order, 8)
    padded = (EOT,) * (order - 1) + tuple(context)
    expected = [slow.probability(padded, token) for token in range(8)]
    np.testing.assert_allclose(distribution, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_sums_to_one_over_a_real_vocabulary(order: int) -> None:
    vocab_size = 50257  # keys of five such tokens packed side by side would overflow 64 bits
    stream = zipf_stream(3, 20_000, vocab_size)
    model = train(stream, order, vocab_size)
    for start in (0, 7, 19_000):
        context = stream[start : start + order - 1]
        assert abs(math.fsum(model.distribution(context)) - 1) < TOLERANCE


def test_score_and_distribution_agree() -> None:
    stream, held_out = zipf_stream(4, 5_000, 40), zipf_stream(5, 50, 40)
    model = train(stream, 3, 40)
    one_by_one = [-math.log(model.distribution(held_out[:i])[held_out[i]]) for i in range(50)]
    np.testing.assert_allclose(model.score(held_out), one_by_one, rtol=TOLERANCE)


def test_scores_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, held_out = zipf_stream(6, 2_000, 20), zipf_stream(7, 100, 20)
    model = train(stream, 4, 20)
    whole = model.score(held_out)
    monkeypatch.setattr(ngram, "_SCORE_ROWS", 7)
    np.testing.assert_array_equal(model.score(held_out), whole)


def test_unigram_by_hand() -> None:
    # counts 4, 2, 1, 1 and a fifth token unseen: n_1 = 2, n_2 = 1, n_3 = 0, n_4 = 1, so Y = 2 / (2 + 2 * 1).
    # D(1) = 1 - 2 Y n_2 / n_1 = 1/2; D(2) = 2 - 3 Y n_3 / n_2 = 2; D(3+): n_3 is 0, so 3/2 stands in.
    model = train(np.array([0, 0, 0, 0, 1, 1, 2, 3]), 1, 5)
    assert model.discounts == ((0.5, 2.0, 1.5),)
    gamma = (2 * 0.5 + 2.0 + 1.5) / 8
    expected = np.array([2.5, 0, 0.5, 0.5, 0]) / 8 + gamma / 5
    np.testing.assert_allclose(model.distribution(np.array([])), expected, rtol=TOLERANCE)


def test_a_longer_context_helps_where_text_repeats() -> None:
    stream = np.tile(np.array([1, 2, 1, 3, 1, 4]), 50)  # what follows 1 depends on the token before it
    losses = [train(stream[:240], order, 5).score(stream[240:]).mean() for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


# -- the suite can fail: bugs of the kind one makes here, planted


def test_a_wrong_discount_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ngram._discounts
    monkeypatch.setattr(ngram, "_discounts", lambda counts: (right(counts)[0],) * 3)  # plain Kneser-Ney
    assert worst_difference(zipf_stream(1, 400, 12), zipf_stream(2, 60, 12), 3, 13) > 1e-3


def test_raw_counts_in_place_of_continuation_counts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def raw_counts(counts, ended, ended_suffix, n_suffixes):
        return np.bincount(ended_suffix, minlength=n_suffixes)

    monkeypatch.setattr(ngram, "_continuation_counts", raw_counts)
    assert worst_difference(zipf_stream(1, 400, 12), zipf_stream(2, 60, 12), 3, 13) > 1e-3


def test_lost_backoff_mass_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ngram._smooth

    def leaky(*arguments):
        order = right(*arguments)
        return dataclasses.replace(order, backoff=np.where(order.backoff < 1, order.backoff * 0.999, 1))

    monkeypatch.setattr(ngram, "_smooth", leaky)
    stream = zipf_stream(1, 400, 12)
    total = math.fsum(train(stream, 3, 13).distribution(stream[:2]))
    assert abs(total - 1) > 1e-5


# -- bad input


@pytest.mark.parametrize("stream", [[], [[1, 2]], [1, 99], [-1]])
def test_bad_streams_are_refused(stream: list) -> None:
    with pytest.raises(DataError):
        train(np.array(stream, dtype=np.int64), 2, 10)


def test_bad_orders_and_separators_are_refused() -> None:
    with pytest.raises(ConfigError, match="order"):
        train(np.array([1]), 0, 10)
    with pytest.raises(ConfigError, match="end-of-text"):
        KneserNey.train(np.array([1]), order=2, vocab_size=10, end_of_text_id=10)
