"""A translation memory: pairs that are known, found again by the terms of a source like one of theirs."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_WORD = re.compile(r"\b\w\w+\b")


class Memory:
    """Looks up by cosine of TF-IDF rows, idf = ln((1 + n) / (1 + df)) + 1 (as scikit-learn's)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str], groups: Sequence[str] = ()) -> None:
        """`groups`: what each pair was taken from, "" if that is not known; none: of no pair."""
        self._sources, self._targets = sources, targets
        counts = Counter(term for text in sources for term in set(_terms(text)))
        self._idf = {word: math.log((1 + len(sources)) / (1 + n)) + 1 for word, n in counts.items()}
        found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, text in enumerate(sources):
            for word, value in self._row(text).items():
                found[word].append((number, value))
        self._with = {
            word: (np.array([number for number, _ in both]), np.array([value for _, value in both]))
            for word, both in found.items()
        }
        self._of_source = _numbers(sources)
        self._of_group = _numbers(groups)

    def nearest(
        self, source: str, n: int = 1, *, itself: bool = True, apart_from: str = ""
    ) -> list[tuple[str, str]]:
        """Up to `n` pairs whose sources share terms with this one, the most alike first.

        Without `itself` none of an equal source, and none of the group `apart_from`.
        """
        alike = np.zeros(len(self._sources))
        for word, value in self._row(source).items():
            numbers, values = self._with[word]
            alike[numbers] += value * values
        if not itself:
            alike[self._of_source.get(source, [])] = 0.0
        if apart_from:
            alike[self._of_group.get(apart_from, [])] = 0.0
        best = np.argsort(-alike, kind="stable")[:n]
        return [(self._sources[i], self._targets[i]) for i in best if alike[i] > 0]

    def _row(self, text: str) -> dict[str, float]:
        row = {word: n * self._idf[word] for word, n in Counter(_terms(text)).items() if word in self._idf}
        length = math.sqrt(sum(value * value for value in row.values()))
        return {word: value / length for word, value in row.items()} if length else {}


def _numbers(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name stands."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        found[name].append(number)
    return dict(found)


def _terms(text: str) -> list[str]:
    """Words of two letters or more, and pairs of neighbours."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]
