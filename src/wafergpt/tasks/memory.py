"""A translation memory: pairs that are known, found again by the words of a source like one of theirs."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


class Memory:
    """Looks up by cosine of TF-IDF rows, idf = ln((1 + n) / (1 + df)) + 1 (as scikit-learn's)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self._targets = targets
        counts = Counter(word for text in sources for word in set(_words(text)))
        self._idf = {word: math.log((1 + len(sources)) / (1 + n)) + 1 for word, n in counts.items()}
        self._with: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, text in enumerate(sources):
            for word, value in self._row(text).items():
                self._with[word].append((number, value))

    def nearest(self, source: str) -> tuple[str, float]:
        """The target of the source most like this one, and how like (0 to 1); ("", 0) if none is."""
        found: defaultdict[int, float] = defaultdict(float)
        for word, value in self._row(source).items():
            for number, other in self._with[word]:
                found[number] += value * other
        if not found:
            return "", 0.0
        best = min(found, key=lambda number: (-found[number], number))
        return self._targets[best], min(1.0, found[best])

    def _row(self, text: str) -> dict[str, float]:
        row = {word: n * self._idf[word] for word, n in Counter(_words(text)).items() if word in self._idf}
        length = math.sqrt(sum(value * value for value in row.values()))
        return {word: value / length for word, value in row.items()} if length else {}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
