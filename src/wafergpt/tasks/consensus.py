"""Which of several answers to give: the one most like all of them.

Minimum Bayes risk (Kumar and Byrne 2004) with chrF as what is gained: where a model is unsure, each of its
translations goes wrong elsewhere, and what they share is likelier right than any (Eikema and Aziz 2020,
Is MAP decoding all you need?, arXiv 2005.10283).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require

LONGEST = 6  # characters in a row that chrF counts
RECALL_WEIGHT = 2.0  # its beta


def most_agreed(texts: Sequence[str]) -> tuple[int, float]:
    """Which text has the highest mean chrF with all, itself too, and that mean, 0..1; among equals the first.

    Raises ConfigError without a text.
    """
    require(len(texts) > 0, "there is no text to choose")
    means = chrf_table(texts).mean(1)
    best = int(means.argmax())
    return best, float(means[best])


def chrf_table(texts: Sequence[str]) -> NDArray[np.float64]:
    """[found, wanted], 0..1: chrF of each text if each other one is right (Popović 2015, W15-3049).

    As sacrebleu's for single texts: without white space, over the lengths that both have. Counted here, since
    a model is used without sacrebleu, which only scoring needs.
    """
    runs = [_runs(text) for text in texts]
    return np.array([[_chrf(found, wanted) for wanted in runs] for found in runs])


def _runs(text: str) -> list[Counter[str]]:
    """How often each run of 1, 2, ... characters occurs."""
    letters = "".join(text.split())
    return [Counter(letters[i : i + n] for i in range(len(letters) - n + 1)) for n in range(1, LONGEST + 1)]


def _chrf(found: Sequence[Counter[str]], wanted: Sequence[Counter[str]]) -> float:
    both = [(a, b) for a, b in zip(found, wanted, strict=True) if a and b]
    if not both:
        return 0.0
    hits = [sum((a & b).values()) for a, b in both]
    precision = np.mean([n / a.total() for n, (a, _) in zip(hits, both, strict=True)])
    recall = np.mean([n / b.total() for n, (_, b) in zip(hits, both, strict=True)])
    square = RECALL_WEIGHT**2
    below = square * precision + recall
    return float((1 + square) * precision * recall / below) if below else 0.0
