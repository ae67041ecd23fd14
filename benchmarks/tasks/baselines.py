"""What a task's scores are held against: methods of a few lines that know nothing of language models.

TF-IDF is scikit-learn's TfidfVectorizer by formula: lower case, words of two letters or more, runs of one and
two words, idf = ln((1 + n) / (1 + df)) + 1, rows of length 1. The logistic regression is its default, C = 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wafergpt.tasks import metrics
from wafergpt.tasks.qa import answers_of

_WORD = re.compile(r"\b\w\w+\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def terms(text: str, longest: int = 2) -> list[str]:
    """Runs of one to `longest` words."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)]


@dataclass(frozen=True)
class Rows:
    """Sparse rows: `ids` and `values` of row i lie at offsets[i] .. offsets[i + 1]."""

    ids: np.ndarray
    values: np.ndarray
    offsets: np.ndarray


class TfIdf:
    """Fitted on texts; turns texts into sparse rows of length 1."""

    def __init__(self, texts: Sequence[str], longest: int = 2) -> None:
        self.longest = longest
        counts = Counter(term for text in texts for term in set(terms(text, longest)))
        self.number = {term: i for i, term in enumerate(counts)}
        self.idf = np.log((1 + len(texts)) / (1 + np.array(list(counts.values())))) + 1

    def rows(self, texts: Sequence[str]) -> Rows:
        """Terms that were never seen are left out."""
        ids, values, offsets = [], [], [0]
        for text in texts:
            found = Counter(self.number[t] for t in terms(text, self.longest) if t in self.number)
            row = np.fromiter(found, np.int64, len(found))
            weights = np.fromiter(found.values(), float, len(found)) * self.idf[row]
            ids.append(row)
            values.append(weights / max(1e-12, float(np.linalg.norm(weights))))
            offsets.append(offsets[-1] + len(row))
        return Rows(np.concatenate(ids), np.concatenate(values), np.array(offsets))


def similarity(a: Rows, b: Rows, n_terms: int) -> np.ndarray:
    """[n a, n b] cosines, by a table of b's rows for each term."""
    owner = np.repeat(np.arange(len(b.offsets) - 1), np.diff(b.offsets))
    order = np.argsort(b.ids, kind="stable")
    starts = np.searchsorted(b.ids[order], np.arange(n_terms + 1))
    found = np.zeros((len(a.offsets) - 1, len(b.offsets) - 1), np.float32)
    for i in range(len(a.offsets) - 1):
        for term, value in zip(*(x[a.offsets[i] : a.offsets[i + 1]] for x in (a.ids, a.values)), strict=True):
            places = order[starts[term] : starts[term + 1]]
            found[i, owner[places]] += value * b.values[places]
    return found


def logistic_regression(train: Rows, labels: np.ndarray, test: Rows, n_terms: int) -> np.ndarray:
    """The labels of the test rows: multinomial, L2 with C = 1, L-BFGS to the end."""
    n_labels = int(labels.max()) + 1
    weight = torch.zeros(n_terms, n_labels, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_labels, dtype=torch.float64, requires_grad=True)

    def logits(rows: Rows) -> torch.Tensor:
        return bias + torch.nn.functional.embedding_bag(
            torch.from_numpy(rows.ids), weight, torch.from_numpy(rows.offsets[:-1]), mode="sum",
            per_sample_weights=torch.from_numpy(rows.values),
        )  # fmt: skip

    wanted = torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(logits(train), wanted, reduction="sum")
            + 0.5 * (weight**2).sum()
        )
        loss.backward()
        return loss

    optimizer.step(cost)
    with torch.no_grad():
        return logits(test).argmax(1).numpy()


def classify(train: list[dict], test: list[dict]) -> dict[str, dict[str, float]]:
    """TF-IDF with logistic regression, and the most frequent label."""
    names = sorted({record["label"] for record in train})
    labels = np.array([names.index(record["label"]) for record in train])
    vectors = TfIdf([record["text"] for record in train])
    rows = [vectors.rows([record["text"] for record in part]) for part in (train, test)]
    found = [names[i] for i in logistic_regression(rows[0], labels, rows[1], len(vectors.idf))]
    wanted = [record["label"] for record in test]
    often = Counter(record["label"] for record in train).most_common(1)[0][0]
    both = {"TF-IDF + logistic regression": found, "most frequent label": [often] * len(test)}
    return {
        name: {"accuracy": metrics.accuracy(a, wanted), "macro_f1": metrics.macro_f1(a, wanted)}
        for name, a in both.items()
    }


def translate(train: list[dict], test: list[dict]) -> dict[str, dict[str, float]]:
    """The source itself, and the translation of the training source nearest by TF-IDF."""
    vectors = TfIdf([record["source"] for record in train])
    rows = [vectors.rows([record["source"] for record in part]) for part in (test, train)]
    nearest = similarity(*rows, len(vectors.idf)).argmax(1)
    wanted = [record["target"] for record in test]
    both = {
        "copy of the source": [record["source"] for record in test],
        "nearest training pair": [train[i]["target"] for i in nearest],
    }
    chinese = metrics.has_chinese(wanted)
    return {name: metrics.bleu_and_chrf(found, wanted, chinese=chinese) for name, found in both.items()}


def answer(test: list[dict]) -> dict[str, dict[str, float]]:
    """The sentence of the passage that shares most words with the question."""
    f1, exact = [], []
    for record in test:
        asked = set(terms(record["question"], 1))
        best = max(_SENTENCE.split(record["context"]), key=lambda s: len(asked & set(terms(s, 1))))
        wanted = [text for text, _ in answers_of(record)]
        f1.append(metrics.word_f1(best, wanted))
        exact.append(metrics.exact_match(best, wanted))
    return {"best sentence": {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}}


def cosines(train: list[dict], asked: list[str], candidates: list[list[str]]) -> np.ndarray:
    """[n, candidates] similarities of questions and passages, by TF-IDF fitted on the training text."""
    vectors = TfIdf([m["content"] for record in train for m in record["messages"]])
    return np.array(
        [
            similarity(vectors.rows([question]), vectors.rows(texts), len(vectors.idf))[0]
            for question, texts in zip(asked, candidates, strict=True)
        ]
    )
