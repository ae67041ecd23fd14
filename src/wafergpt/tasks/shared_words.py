"""Where a passage says what a question asks: the rare words that each sentence shares with the question.

The old rule of reading comprehension (Hirschman et al. 1999, Deep Read: the sentence with most of the
question's words); here a word counts by how few of the passage's sentences have it, and words agree by their
first letters.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
STEM_LETTERS = 4  # "invented" and "invention" agree; chosen on validation (docs/log.md)


def shared_rarity(question: str, passage: str) -> NDArray[np.float32]:
    """[characters of the passage]: nats of rarity that its sentence shares with the question.

    A word that n of the N sentences have is worth ln((N + 1) / (n + 1/2)). Characters of the shared words
    themselves have 0: a question seldom holds its own answer.
    """
    found = np.zeros(len(passage), np.float32)
    asked = {stem(word) for word in _WORD.findall(question)}
    sentences = []
    start = 0
    for end in [*(m.start() for m in _SENTENCE_END.finditer(passage)), len(passage)]:
        words = [m for m in _WORD.finditer(passage, start, end) if stem(m[0]) in asked]
        sentences.append((start, end, words))
        start = end
    stems = [{stem(m[0]) for m in words} for _, _, words in sentences]
    for (start, end, words), of_sentence in zip(sentences, stems, strict=True):
        found[start:end] = sum(_rarity(stem, stems) for stem in of_sentence)
        for match in words:
            found[match.start() : match.end()] = 0.0
    return found


def _rarity(stem: str, sentences: list[set[str]]) -> float:
    return math.log((len(sentences) + 1) / (sum(stem in words for words in sentences) + 0.5))


def stem(word: str) -> str:
    """What words are compared by."""
    return word.lower()[:STEM_LETTERS]
