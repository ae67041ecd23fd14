"""What two texts share: runs of 13 words, and taking the sentences that hold them out of a document.

Words are lower-case letters and digits. A run is known by 64 bits: among 1e7 runs against 1e6 the odds of one
false match are 1 in 2 million. Thirteen words is the length GPT-3's authors looked for (Brown et al. 2020,
arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RUN_WORDS = 13
Runs = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_BORDER = re.compile(r"(?<=[.!?;:])\s+|\n+")  # between two sentences, or clauses
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying loses no bits


class RunFinder:
    """Finds runs of `RUN_WORDS` words; keeps what it has learned of words, so use one for many texts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def runs(self, text: str) -> Runs:
        """The run that starts at each word, [n words - 12]; empty for a shorter text."""
        return self._of([word.lower() for word in _WORD.findall(text)])

    def distinct(self, texts: Iterable[str]) -> Runs:
        """All runs of the texts, each once, in ascending order."""
        found = [self.runs(text) for text in texts]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)

    def without(self, text: str, known: Runs) -> tuple[str, int, Runs]:
        """(`text` without the sentences that hold a word of a run in `known`, their number, those runs).

        `known` is ascending. Where sentences were taken out, a line ends.
        """
        runs = self.runs(text)
        hits = is_in(runs, known)
        if not hits.any():
            return text, 0, runs[:0]
        words = list(_WORD.finditer(text))
        covered = {int(start) + n for start in np.flatnonzero(hits) for n in range(RUN_WORDS)}
        borders = [match.end() for match in _BORDER.finditer(text)]
        dropped = {
            int(n)
            for word in covered
            for n in np.searchsorted(borders, [words[word].start(), words[word].end() - 1], side="right")
        }
        kept = []
        for n, (start, end) in enumerate(zip([0, *borders], [*borders, len(text)], strict=True)):
            kept.append(text[start:end] if n not in dropped else "\n")
        rest = re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", "".join(kept)))
        return rest, len(dropped), np.unique(runs[hits])

    def _of(self, words: list[str]) -> Runs:
        numbers = np.fromiter((self._number(word) for word in words), np.uint64, len(words))
        n_runs = max(0, len(words) - RUN_WORDS + 1)
        runs = np.zeros(n_runs, np.uint64)
        for n in range(RUN_WORDS):  # a polynomial in _FACTOR, modulo 2**64
            runs = runs * np.uint64(_FACTOR) + numbers[n : n + n_runs]
        return runs

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._numbers[word] = number
        return number


def is_in(runs: Runs, known: Runs) -> NDArray[np.bool_]:
    """Which of `runs` are in `known`, which is ascending."""
    if len(known) == 0:
        return np.zeros(len(runs), bool)
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return np.asarray(known[places] == runs)
