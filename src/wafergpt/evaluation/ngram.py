"""Interpolated modified Kneser-Ney n-gram models over token ids: the baseline a neural model must beat.

Definition (Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
Computer Speech & Language 13, equations 26 to 29), for a context h of k - 1 tokens, order k = n ... 1:

    P_k(w | h) = max(c_k(h w) - D_k(c_k(h w)), 0) / c_k(h) + gamma_k(h) P_{k-1}(w | h without its first token)
    P_0(w)     = 1 / vocab_size
    c_n        = how often the n-gram occurs; c_k for k < n = how many different tokens stand before it
    c_k(h)     = sum over w of c_k(h w);    P_k = P_{k-1} where c_k(h) = 0
    D_k(0)     = 0, and three discounts per order for counts of 1, 2 and 3 or more, from the numbers n_i of
                 n-grams with count i:  Y = n_1 / (n_1 + 2 n_2),  D(i) = i - (i + 1) Y n_{i+1} / n_i
    gamma_k(h) = (D(1) N_1(h) + D(2) N_2(h) + D(3) N_3+(h)) / c_k(h): what was discounted, so that P sums to 1

A text is one stream of tokens with end-of-text between documents, end-of-text being a token like any
other; n - 1 of them stand before the first token, so that every token of the stream is predicted.

How it is stored: an n-gram is known by its rank in a sorted array of keys (rank of its first k - 1
tokens) * vocab_size + (its last token), so any order fits 64 bits and a lookup is one binary search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.errors import DataError

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]

_SCORE_ROWS = 1 << 18  # n-grams looked up at a time: bounds memory to some 20 MB


@dataclass(frozen=True, kw_only=True)
class _Order:
    """One order k. Rows are n-grams (sorted by key), contexts are rows of order k - 1 (one for k = 1)."""

    keys: Ids  # [rows], ascending: context * vocab_size + last token
    share: Reals  # [rows]: (c - D(c)) / c(h)
    backoff: Reals  # [contexts]: gamma(h); 1 where the context was never followed by anything
    discounts: tuple[float, float, float]


class KneserNey:
    """An interpolated modified Kneser-Ney model; build it with `KneserNey.train`."""

    def __init__(self, orders: tuple[_Order, ...], vocab_size: int, end_of_text_id: int) -> None:
        self._orders = orders
        self.vocab_size = vocab_size
        self.end_of_text_id = end_of_text_id

    @classmethod
    def train(
        cls, token_ids: NDArray[np.integer], *, order: int, vocab_size: int, end_of_text_id: int
    ) -> KneserNey:
        """Count the stream `token_ids` [N] and derive every probability (about 1 s per million tokens).

        Raises ConfigError for an order outside 1 ... 9, DataError for an empty stream or an id outside
        the vocabulary.
        """
        require(1 <= order <= 9, f"an n-gram order must lie between 1 and 9, not {order}")
        stream = _padded(token_ids, order, vocab_size, end_of_text_id)
        keys, ranks = _rank_ngrams(stream, order, vocab_size)
        # ranks[k - 1][i]: the k-gram that ends at stream position i + k - 1. Targets start at order - 1.
        ended = [ranks[k - 1][order - k :] for k in range(1, order + 1)]  # each [N]
        counts: NDArray[np.integer] = np.bincount(ended[-1], minlength=len(keys[-1]))
        orders: list[_Order] = []
        for k in range(order, 0, -1):
            n_contexts = len(keys[k - 2]) if k > 1 else 1
            orders.append(_smooth(keys[k - 1], counts, vocab_size, n_contexts))
            if k > 1:
                counts = _continuation_counts(counts, ended[k - 1], ended[k - 2], n_contexts)
        return cls(tuple(reversed(orders)), vocab_size, end_of_text_id)

    @property
    def order(self) -> int:
        """n of the n-gram."""
        return len(self._orders)

    @property
    def discounts(self) -> tuple[tuple[float, float, float], ...]:
        """(D1, D2, D3+) of the orders 1 ... n."""
        return tuple(order.discounts for order in self._orders)

    def score(self, token_ids: NDArray[np.integer]) -> Reals:
        """Nats of every token of the stream `token_ids` [N] -> [N], the first one after end-of-text.

        Raises DataError for an empty stream or an id outside the vocabulary.
        """
        stream = _padded(token_ids, self.order, self.vocab_size, self.end_of_text_id)
        windows = sliding_window_view(stream, self.order)  # [N, n]
        nats = np.empty(len(windows), dtype=np.float64)
        for start in range(0, len(windows), _SCORE_ROWS):
            part = slice(start, start + _SCORE_ROWS)
            nats[part] = -np.log(self._probabilities(windows[part]))
        return nats

    def distribution(self, context: NDArray[np.integer]) -> Reals:
        """P(w | context) for every w -> [vocab_size]; `context` [any length], its last n - 1 tokens count.

        A shorter context is preceded by end-of-text, as the first tokens of a stream are.
        """
        padded = _padded(np.append(context, self.end_of_text_id), self.order, self.vocab_size,
                         self.end_of_text_id)  # fmt: skip
        windows = np.tile(padded[-self.order :], (self.vocab_size, 1))  # [V, n]
        windows[:, -1] = np.arange(self.vocab_size)
        return self._probabilities(windows)

    def _probabilities(self, windows: Ids) -> Reals:
        """P of the last token of each row of `windows` [M, n] given the tokens before it -> [M]."""
        probability = np.full(len(windows), 1.0 / self.vocab_size)
        for k in range(1, self.order + 1):
            context, row = self._find(windows[:, self.order - k :])
            order = self._orders[k - 1]
            share = np.where(row >= 0, order.share[row], 0.0)
            backoff = np.where(context >= 0, order.backoff[context], 1.0)
            probability = share + backoff * probability
        return probability

    def _find(self, ngrams: Ids) -> tuple[Ids, Ids]:
        """Ranks of the first k - 1 tokens and of all k tokens of `ngrams` [M, k]; -1 where never seen."""
        context = np.zeros(len(ngrams), dtype=np.int64)
        row = ngrams[:, 0]  # order 1 holds every token, at its own rank
        for k in range(2, ngrams.shape[1] + 1):
            context = row
            keys = self._orders[k - 1].keys
            wanted = context * self.vocab_size + ngrams[:, k - 1]
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            row = np.where((context >= 0) & (keys[place] == wanted), place, -1)
        return context, row


def _padded(token_ids: NDArray[np.integer], order: int, vocab_size: int, end_of_text_id: int) -> Ids:
    """The stream as int64 with `order` - 1 end-of-text tokens before it -> [order - 1 + N], checked."""
    stream = np.asarray(token_ids)
    if stream.ndim != 1 or stream.size == 0:
        raise DataError(f"an n-gram model needs a non-empty stream of token ids, not shape {stream.shape}")
    low, high = int(stream.min()), int(stream.max())
    require(0 <= end_of_text_id < vocab_size, f"end-of-text id {end_of_text_id} is outside the vocabulary")
    if low < 0 or high >= vocab_size:
        raise DataError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}")
    return np.concatenate([np.full(order - 1, end_of_text_id), stream]).astype(np.int64)


def _rank_ngrams(stream: Ids, order: int, vocab_size: int) -> tuple[list[Ids], list[Ids]]:
    """For k = 1 ... order the sorted keys of the k-grams of `stream` and the rank of each in turn."""
    keys: list[Ids] = [np.arange(vocab_size)]
    ranks: list[Ids] = [stream]
    for _ in range(1, order):
        occurring = ranks[-1][:-1] * vocab_size + stream[len(ranks) :]
        unique, rank = np.unique(occurring, return_inverse=True)
        keys.append(unique)
        ranks.append(rank.reshape(-1))
    return keys, ranks


def _continuation_counts(
    counts: NDArray[np.integer], ended: Ids, ended_suffix: Ids, n_suffixes: int
) -> NDArray[np.integer]:
    """In how many k-grams that occur each (k - 1)-gram is the suffix -> [n_suffixes].

    `ended` and `ended_suffix` [N] are the ranks of the k-gram and the (k - 1)-gram ending at each target.
    """
    suffix = np.zeros(len(counts), dtype=np.int64)
    suffix[ended] = ended_suffix
    return np.bincount(suffix[counts > 0], minlength=n_suffixes)


def _smooth(keys: Ids, counts: NDArray[np.integer], vocab_size: int, n_contexts: int) -> _Order:
    """Discount the counts [rows] of one order and share them out within each context."""
    contexts = keys // vocab_size
    discounts = _discounts(counts)
    discounted = np.array([0.0, *discounts])[np.minimum(counts, 3)]  # [rows]
    total = np.bincount(contexts, weights=counts, minlength=n_contexts)
    removed = np.bincount(contexts, weights=discounted, minlength=n_contexts)
    followed = np.maximum(total, 1)  # a context that nothing follows: no share, everything backs off
    return _Order(
        keys=keys,
        share=(counts - discounted) / followed[contexts],
        backoff=np.where(total > 0, removed / followed, 1.0),
        discounts=discounts,
    )


def _discounts(counts: NDArray[np.integer]) -> tuple[float, float, float]:
    """(D1, D2, D3+) from the counts of counts; see the module's head.

    Texts of a few hundred tokens can lack some n_i, or give a discount outside (0, i]: then D(i) = i / 2
    stands in, which still makes every probability positive and the sum 1.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] > 0 else 0.0
    estimates = [i - (i + 1) * y * n[i + 1] / n[i] if n[i] > 0 and y > 0 else -1.0 for i in (1, 2, 3)]
    first, second, third = (d if 0 < d <= i else i / 2 for i, d in zip((1, 2, 3), estimates, strict=True))
    return first, second, third
