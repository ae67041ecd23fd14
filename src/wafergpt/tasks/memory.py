"""A translation memory: pairs that are known, found again by the terms of a source like one of theirs."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

_WORD = re.compile(r"\b\w\w+\b")


class Memory:
    """Looks up by cosine of TF-IDF rows, idf = ln((1 + n) / (1 + df)) + 1 (as scikit-learn's)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self._sources, self._targets = sources, targets
        counts = Counter(term for text in sources for term in set(_terms(text)))
        self._idf = {word: math.log((1 + len(sources)) / (1 + n)) + 1 for word, n in counts.items()}
        self._with: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, text in enumerate(sources):
            for word, value in self._row(text).items():
                self._with[word].append((number, value))

    def nearest(self, source: str, *, itself: bool = True) -> str:
        """The target of the source most like this one, "" if none is; `itself`: also of an equal source."""
        found: defaultdict[int, float] = defaultdict(float)
        for word, value in self._row(source).items():
            for number, other in self._with[word]:
                found[number] += value * other
        likely = (number for number in found if itself or self._sources[number] != source)
        best = min(likely, key=lambda number: (-found[number], number), default=None)
        return "" if best is None else self._targets[best]

    def _row(self, text: str) -> dict[str, float]:
        row = {word: n * self._idf[word] for word, n in Counter(_terms(text)).items() if word in self._idf}
        length = math.sqrt(sum(value * value for value in row.values()))
        return {word: value / length for word, value in row.items()} if length else {}


def _terms(text: str) -> list[str]:
    """Words of two letters or more, and pairs of neighbours."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]
