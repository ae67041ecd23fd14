"""Loss of a model on held-out tokens: every token predicted exactly once, in overlapping windows.

How it is counted, the same for every model and n-gram baseline here: the held-out text is one stream of
tokens with an end-of-text token after each document. All N tokens of the stream are predicted, end-of-text
included, the first one from an end-of-text token standing before the stream. Context runs on across
documents, as it does in the packed windows a model is trained on.

    nats/token = total nats / N      perplexity = exp(nats/token)
    bits/byte  = total nats / (ln 2 * UTF-8 bytes of the text, end-of-text being no bytes)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.errors import DataError, NonFiniteError

COUNTING = (
    "every token of the held-out stream is predicted once, the end-of-text token after each document "
    "included and the first token from end-of-text; bits/byte divides by the bytes of the text alone"
)


class Scorer(Protocol):
    """What is needed of a model; `scoring.EngineScorer` has it."""

    @property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        ...

    @property
    def max_seq_len(self) -> int:
        """The most tokens a prediction can be conditioned on."""
        ...

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[NDArray[np.float32]]:
        """Log-probability (nats, <= 0) of each window's tokens from its `n_context` (>= 1) on.

        Each token is predicted from all before it in its window: [len - n_context] for each window.
        """
        ...


class TokenStream(Protocol):
    """Held-out tokens; `data.shards.ShardSet` is one, so a large set need not fit into memory."""

    @property
    def n_tokens(self) -> int:
        """Length of the stream, end-of-text included."""
        ...

    def read(self, start: int, n: int) -> NDArray[Any]:
        """Ids start ... start + n - 1 -> integers [n]."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A token stream held in an array [N]."""

    token_ids: NDArray[Any]

    @property
    def n_tokens(self) -> int:
        """Length of the stream, end-of-text included."""
        return len(self.token_ids)

    def read(self, start: int, n: int) -> NDArray[Any]:
        """Ids start ... start + n - 1 -> integers [n]."""
        return self.token_ids[start : start + n]


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The loss of one model on one held-out stream, and how it was taken."""

    n_tokens: int
    n_text_bytes: int
    total_nats: float
    seq_len: int
    stride: int
    duration_s: float

    @property
    def nats_per_token(self) -> float:
        """Mean over all predicted tokens."""
        return self.total_nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, and with compressors."""
        return bits_per_byte(self.total_nats, self.n_text_bytes)

    @property
    def min_context_tokens(self) -> int:
        """Fewest tokens before a predicted one, the first window's tokens excepted."""
        return self.seq_len - self.stride + 1

    @property
    def protocol(self) -> str:
        """The windows in words."""
        return (
            f"windows of {self.seq_len} tokens every {self.stride}; beyond the first window every token "
            f"is predicted from at least {self.min_context_tokens} tokens"
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """Predicts tokens start ... start + seq_len - 1 of the stream from the token before `start` on."""

    start: int
    n_skipped: int  # predictions at its head that an earlier window has counted


def bits_per_byte(total_nats: float, n_text_bytes: int) -> float:
    """Nats over a whole text as bits per byte of it."""
    return total_nats / math.log(2) / n_text_bytes


def windows(n_tokens: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Windows of `seq_len` predictions, `stride` apart, the last one flush with the end of the stream.

    Needs seq_len <= n_tokens and 1 <= stride <= seq_len. What they count covers 0 ... n_tokens - 1 once.
    """
    n_counted = 0
    while n_counted < n_tokens:
        end = min(n_counted + (stride if n_counted else seq_len), n_tokens)
        start = end - seq_len
        yield Window(start=start, n_skipped=n_counted - start)
        n_counted = end


def evaluate(
    scorer: Scorer,
    tokens: TokenStream,
    *,
    n_text_bytes: int,
    end_of_text_id: int,
    seq_len: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> HeldOutLoss:
    """Loss of `scorer` on the whole stream.

    `seq_len` (None: the model's) is the window; `stride` (None: half of it, so that every token but the
    first ones has at least half a window of context) how far windows are apart: `stride = seq_len` is
    twice as fast and reads higher. Both are cut to the stream when that is shorter.

    Raises DataError for an empty stream or an id outside the model's vocabulary, ConfigError for a
    window or stride out of range, NonFiniteError if the model gives a token no finite log-probability.
    """
    if tokens.n_tokens == 0 or n_text_bytes == 0:
        raise DataError("there is no held-out text to evaluate on")
    limit = scorer.max_seq_len
    seq_len = limit if seq_len is None else seq_len
    require(1 <= seq_len <= limit, f"seq_len = {seq_len} is out of range; this model allows 1 to {limit}")
    stride = max(1, seq_len // 2) if stride is None else stride
    require(1 <= stride <= seq_len, f"stride = {stride} is out of range; allowed: 1 to seq_len = {seq_len}")
    require(batch_size >= 1, f"batch_size = {batch_size} must be at least 1")
    seq_len = min(seq_len, tokens.n_tokens)
    stride = min(stride, seq_len)
    started_s = time.perf_counter()
    total_nats = 0.0
    pending = windows(tokens.n_tokens, seq_len, stride)
    while batch := list(islice(pending, batch_size)):
        total_nats -= _score_batch(scorer, tokens, batch, seq_len, end_of_text_id)
    return HeldOutLoss(
        n_tokens=tokens.n_tokens,
        n_text_bytes=n_text_bytes,
        total_nats=total_nats,
        seq_len=seq_len,
        stride=stride,
        duration_s=time.perf_counter() - started_s,
    )


def _score_batch(
    scorer: Scorer, tokens: TokenStream, batch: list[Window], seq_len: int, end_of_text_id: int
) -> float:
    """Sum of the counted log-probabilities of `batch`, in float64."""
    inputs, n_context = [], []
    for window in batch:
        first = max(window.start - 1, 0)  # the stream begins with end-of-text at position -1
        ids = tokens.read(first, window.start + seq_len - first).astype(np.int64)
        if ids.max() >= scorer.vocab_size or ids.min() < 0:
            raise DataError(
                f"token id {ids.max()} is outside the model's vocabulary of {scorer.vocab_size}; "
                "was the text prepared with another tokenizer?"
            )
        inputs.append([*([end_of_text_id] if window.start == 0 else []), *ids.tolist()])
        n_context.append(1 + window.n_skipped)
    total = 0.0
    for window, row in zip(batch, scorer.score(inputs, n_context), strict=True):
        n_counted = seq_len - window.n_skipped
        assert row.shape == (n_counted,), f"a scorer returned shape {row.shape} for {n_counted} predictions"
        counted = row.astype(np.float64)
        if not np.isfinite(counted).all():
            place = window.start + window.n_skipped + int(np.flatnonzero(~np.isfinite(counted))[0])
            raise NonFiniteError(f"the model gives held-out token {place} no finite log-probability")
        assert (counted <= 1e-3).all(), "a scorer returned a probability above 1"  # float32 rounding
        total += float(counted.sum())
    return total
