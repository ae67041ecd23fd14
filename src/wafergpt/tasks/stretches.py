"""Which stretch of a passage to answer with, from how likely each token is to be its first and its last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

N_LIKELY = 300  # stretches that may be the answer, when overlaps are expected; all others are left out


class Choose(StrEnum):
    """What the chosen stretch is best at."""

    LIKELIEST = "likeliest"
    EXPECTED_F1 = (
        "expected_f1"  # of tokens: where a model is unsure, a longer stretch that holds more of them
    )


@dataclass(frozen=True)
class Stretch:
    """Tokens first to last of the passage; `confidence` is its probability, or its expected F1."""

    first: int
    last: int
    confidence: float


def likeliest(p: NDArray[np.float64], pieces: Sequence[tuple[int, int]], longest: int) -> Stretch:
    """The pair of highest product; p [2, positions of all pieces], a piece is (start, end) in the passage."""
    found = Stretch(0, 0, -1.0)
    for at, together in _pairs(p, pieces, longest):
        if together.max() > found.confidence:
            i, j = np.unravel_index(int(together.argmax()), together.shape)
            found = Stretch(at + int(i), at + int(j), float(together.max()))
    return found


def expected_f1(p: NDArray[np.float64], pieces: Sequence[tuple[int, int]], longest: int) -> Stretch:
    """The stretch whose F1 of tokens, averaged over the likely ones by their probability, is highest.

    F1 of two stretches is twice their overlap over the sum of their lengths (minimum Bayes risk, Kumar and
    Byrne 2004). Arguments as of `likeliest`.
    """
    firsts, lasts, weights = [], [], []
    for at, together in _pairs(p, pieces, longest):
        i, j = np.nonzero(np.tril(np.triu(np.ones_like(together)), longest - 1))
        firsts.append(at + i)
        lasts.append(at + j)
        weights.append(together[i, j])
    first, last, weight = (np.concatenate(parts) for parts in (firsts, lasts, weights))
    likely = np.argsort(-weight, kind="stable")[:N_LIKELY]
    share = weight[likely] / weight[likely].sum()
    gain = np.zeros(len(first))
    for i, j, by in zip(first[likely], last[likely], share, strict=True):
        overlap = np.maximum(0, np.minimum(last, j) - np.maximum(first, i) + 1)
        gain += by * 2 * overlap / (last - first + 1 + j - i + 1)
    best = int(gain.argmax())
    return Stretch(int(first[best]), int(last[best]), float(gain[best]))


def _pairs(
    p: NDArray[np.float64], pieces: Sequence[tuple[int, int]], longest: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Where each piece starts, and [first, last] products of its stretches; 0 for what is none."""
    done = 0
    for at, end in pieces:
        here = p[:, done : done + end - at]
        done += end - at
        yield at, np.tril(np.triu(here[0][:, None] * here[1][None, :]), longest - 1)
