"""Measures of answers, each as its source defines it (no torch)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.errors import MissingDependencyError


def accuracy(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers that are the wanted ones."""
    _check(found, wanted)
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def confusion(found: Sequence[str], wanted: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """[C, C] counts: row the wanted label, column the one found."""
    number = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), np.int64)
    for a, b in zip(found, wanted, strict=True):
        table[number[b], number[a]] += 1
    return table


def macro_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean over the labels that occur in either of 2 hits / (times found + times wanted)."""
    _check(found, wanted)
    hits = Counter(a for a, b in zip(found, wanted, strict=True) if a == b)
    n_found, n_wanted = Counter(found), Counter(wanted)
    labels = n_found.keys() | n_wanted.keys()
    return sum(2 * hits[label] / (n_found[label] + n_wanted[label]) for label in labels) / len(labels)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(text: str) -> list[str]:
    """SQuAD's normal form (its evaluate-v1.1.py, 2016): lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(found: str, wanted: Sequence[str]) -> float:
    """1 if the answer is one of the wanted ones in SQuAD's normal form, else 0."""
    return float(any(squad_words(found) == squad_words(text) for text in wanted))


def word_f1(found: str, wanted: Sequence[str]) -> float:
    """The best F1 over the wanted answers, of words in SQuAD's normal form."""
    return max(_one_f1(squad_words(found), squad_words(text)) for text in wanted)


def _one_f1(found: list[str], wanted: list[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct runs of n words over all runs (Li et al. 2016, arXiv 1510.03055); 0 when there is none."""
    rows = [text.split() for text in texts]
    runs = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def bleu_and_chrf(found: Sequence[str], wanted: Sequence[str], *, chinese: bool = False) -> dict[str, float]:
    """Corpus BLEU and chrF of sacrebleu, 0 to 100 (Post 2018); its Chinese word rule for Chinese.

    Raises MissingDependencyError without sacrebleu.
    """
    _check(found, wanted)
    try:
        import sacrebleu
    except ImportError:
        raise MissingDependencyError("BLEU and chrF need sacrebleu: pip install 'wafergpt[tasks]'") from None
    references = [list(wanted)]
    tokenize = "zh" if chinese else "13a"
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(found), references, tokenize=tokenize).score),
        "chrf": float(sacrebleu.corpus_chrf(list(found), references).score),
    }


def has_chinese(texts: Sequence[str]) -> bool:
    """Whether most letters are Chinese characters (CJK Unified Ideographs)."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return 2 * sum("\u4e00" <= letter <= "\u9fff" for letter in letters) > len(letters)


def _check(found: Sequence[str], wanted: Sequence[str]) -> None:
    require(
        len(found) == len(wanted) > 0, f"{len(found)} answers for {len(wanted)} examples; nothing to score"
    )
