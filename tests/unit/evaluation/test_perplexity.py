"""Every held-out token counts exactly once, whatever the windows, and as it does for the n-grams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from wafergpt.errors import ConfigError, DataError, NonFiniteError
from wafergpt.evaluation import perplexity
from wafergpt.evaluation.ngram import KneserNey
from wafergpt.evaluation.perplexity import HeldOutLoss, InMemory, Window, evaluate, windows

EOT, VOCAB_SIZE = 0, 17
STREAM = np.random.default_rng(0).integers(0, VOCAB_SIZE, size=203)
# A scorer's float32 rows are rounded once each: relative 2^-24; 2^-23 leaves room for the float64 sums.
TOLERANCE = 2**-23


class BigramScorer:
    """Looks at one token of context, so that its loss cannot depend on windows: only on the counting."""

    vocab_size, max_seq_len = VOCAB_SIZE, 32

    def __init__(self) -> None:
        train = np.random.default_rng(1).integers(0, VOCAB_SIZE, size=1000)
        self.model = KneserNey.train(train, order=2, vocab_size=VOCAB_SIZE, end_of_text_id=EOT)
        self.table = np.log([self.model.distribution(np.array([token])) for token in range(VOCAB_SIZE)])

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
        return [
            self.table[window[n - 1 : -1], window[n:]].astype(np.float32)
            for window, n in zip(windows, n_context, strict=True)
        ]


class ContextScorer:
    """Its log-probability is minus the number of tokens a prediction may look at."""

    vocab_size, max_seq_len = VOCAB_SIZE, 32

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
        return [
            -np.arange(n, len(window), dtype=np.float32) for window, n in zip(windows, n_context, strict=True)
        ]


class BrokenScorer(BigramScorer):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
        rows = super().score(windows, n_context)
        rows[0][3] = self.value
        return rows


def measure(scorer: perplexity.Scorer, stream: np.ndarray = STREAM, **options) -> HeldOutLoss:
    return evaluate(scorer, InMemory(stream), n_text_bytes=500, end_of_text_id=EOT, **options)


def times_counted(found: list[Window], n_tokens: int, seq_len: int) -> np.ndarray:
    counted = np.zeros(n_tokens, dtype=int)
    for window in found:
        counted[window.start + window.n_skipped : window.start + seq_len] += 1
    return counted


@pytest.mark.parametrize("n_tokens", [32, 33, 47, 48, 64, 203])
@pytest.mark.parametrize("stride", [1, 5, 16, 31, 32])
def test_windows_count_every_token_once_with_the_context_they_promise(n_tokens: int, stride: int) -> None:
    found = list(windows(n_tokens, 32, stride))
    assert np.all(times_counted(found, n_tokens, 32) == 1)
    assert found[0] == Window(start=0, n_skipped=0)
    assert all(window.n_skipped >= 32 - stride for window in found[1:])
    assert all(0 <= window.start <= n_tokens - 32 for window in found)


@pytest.mark.parametrize("seq_len, stride", [(None, None), (32, 32), (32, 1), (7, 3), (1, 1)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_loss_equals_the_n_gram_models_own_count(
    seq_len: int | None, stride: int | None, batch_size: int
) -> None:
    scorer = BigramScorer()
    loss = measure(scorer, seq_len=seq_len, stride=stride, batch_size=batch_size)
    assert loss.total_nats == pytest.approx(scorer.model.score(STREAM).sum(), rel=TOLERANCE)
    assert loss.n_tokens == len(STREAM)


def test_a_stream_shorter_than_a_window_is_one_window() -> None:
    scorer = BigramScorer()
    loss = measure(scorer, STREAM[:5])
    assert (loss.seq_len, loss.stride) == (5, 5)
    assert loss.total_nats == pytest.approx(scorer.model.score(STREAM[:5]).sum(), rel=TOLERANCE)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_context_is_at_least_what_the_result_says(stride: int) -> None:
    loss = measure(ContextScorer(), np.tile(STREAM, 3)[: 32 + 4 * stride], stride=stride)
    # The first window's 32 tokens see 1 ... 32 tokens; 4 windows' last `stride` see up to 32 each.
    later = sum(range(loss.min_context_tokens, 33))
    assert loss.total_nats == sum(range(1, 33)) + 4 * later
    assert f"at least {33 - stride} tokens" in loss.protocol


def test_default_stride_gives_half_a_window_of_context() -> None:
    assert measure(BigramScorer()).min_context_tokens > 32 / 2


def test_units_of_a_uniform_model() -> None:
    class Uniform(BigramScorer):
        def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
            lengths = [len(w) - n for w, n in zip(windows, n_context, strict=True)]
            return [np.full(n, -math.log(VOCAB_SIZE), dtype=np.float32) for n in lengths]

    loss = measure(Uniform())
    assert loss.nats_per_token == pytest.approx(math.log(VOCAB_SIZE), rel=TOLERANCE)
    assert loss.perplexity == pytest.approx(VOCAB_SIZE, rel=1e-6)
    assert loss.bits_per_byte == pytest.approx(203 * math.log2(VOCAB_SIZE) / 500, rel=TOLERANCE)


def test_overlap_counted_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(n_tokens: int, seq_len: int, stride: int):
        return (Window(start=w.start, n_skipped=0) for w in windows(n_tokens, seq_len, stride))

    assert times_counted(list(forgetful(203, 32, 16)), 203, 32).max() > 1
    scorer = BigramScorer()
    monkeypatch.setattr(perplexity, "windows", forgetful)
    assert measure(scorer).total_nats > 1.5 * scorer.model.score(STREAM).sum()


def test_a_shift_by_one_is_caught() -> None:
    class Shifted(BigramScorer):
        def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
            return super().score([[*window[1:], window[0]] for window in windows], n_context)

    scorer = Shifted()
    assert measure(scorer).total_nats != pytest.approx(scorer.model.score(STREAM).sum(), rel=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [({"seq_len": 33}, "1 to 32"), ({"stride": 0}, "stride"), ({"stride": 33}, "stride"),
     ({"seq_len": 0}, "seq_len"), ({"batch_size": 0}, "batch_size")],
)  # fmt: skip
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(BigramScorer(), **options)


def test_bad_text_and_bad_models() -> None:
    with pytest.raises(DataError, match="no held-out text"):
        measure(BigramScorer(), STREAM[:0])
    with pytest.raises(DataError, match="token id 17 is outside"):
        measure(BigramScorer(), np.array([1, 17]))
    with pytest.raises(NonFiniteError, match="token 3 "):
        measure(BrokenScorer(float("nan")))
    with pytest.raises(AssertionError, match="above 1"):
        measure(BrokenScorer(2.0))
