"""Questions on passages in SQuAD's JSON. Records are {"question", "context", "answers", "group"}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRAINED_ON = ("new_wiki_v1.0.json", "nyt_v1.0.json")
_TESTED_ON = "squaddev_v1.1.json"
TEST_GROUP = "squad-dev: "


def squad(folder: Path) -> Iterator[dict[str, Any]]:
    """SQuAD 1.1's development set, then the new Wikipedia and news questions of SQuAD-Shifts.

    `answers` is {"text": [...], "answer_start": [...]}, each answer once; those that are not where they
    say are left out, and so are articles that the development set has too.
    """
    tested = _articles(folder / _TESTED_ON)
    titles = {article["title"] for article in tested}
    for article in tested:
        yield from _questions(article, TEST_GROUP + article["title"])
    for name in _TRAINED_ON:
        for article in _articles(folder / name):
            if article["title"] not in titles:
                yield from _questions(article, article["title"])


def _articles(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["data"]
    return found


def _questions(article: dict[str, Any], group: str) -> Iterator[dict[str, Any]]:
    for paragraph in article["paragraphs"]:
        context = paragraph["context"]
        for asked in paragraph["qas"]:
            starts: dict[str, int] = {}
            for answer in asked["answers"]:
                text, start = answer["text"], answer["answer_start"]
                if text and context[start : start + len(text)] == text:
                    starts.setdefault(text, start)
            if starts:
                answers = {"text": list(starts), "answer_start": list(starts.values())}
                question = " ".join(asked["question"].split())
                yield {"question": question, "context": context, "answers": answers, "group": group}
