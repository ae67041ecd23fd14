"""A translation memory: which pairs it finds, and how they are shown before a source."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel, byte_tokenizer

from wafergpt.tasks.memory import Memory
from wafergpt.tasks.registry import make, settings_of
from wafergpt.tasks.task import Unfit
from wafergpt.tasks.translation import Hints, Translation

SOURCES = ["Open a file", "Close the window", "Open a window"]
PAIRS = [
    {"source": "red house", "target": "maison rouge", "group": "1"},
    {"source": "red car", "target": "voiture rouge", "group": "1"},
    {"source": "red sky", "target": "ciel rouge", "group": "2"},
    {"source": "blue sky", "target": "ciel bleu", "group": "3"},
]
TOKENIZER = byte_tokenizer()


def test_the_source_that_is_most_alike_is_found() -> None:
    memory = Memory(SOURCES, ["A", "B", "C"])
    assert memory.nearest("open a window!") == [("Open a window", "C")]
    assert [target for _, target in memory.nearest("open a window!", 9)] == ["C", "A", "B"]
    assert memory.nearest("Open a window", itself=False) == [("Open a file", "A")]
    assert memory.nearest("close it", 9) == [("Close the window", "B")], "the others share nothing"
    assert memory.nearest("nothing alike") == Memory([], []).nearest("x") == []


def test_what_is_of_the_same_group_is_not_found() -> None:
    memory = Memory(SOURCES, ["A", "B", "C"], ["files", "windows", "windows"])
    assert memory.nearest("open the window", apart_from="windows") == [("Open a file", "A")]
    assert memory.nearest("open the window", apart_from="elsewhere") == memory.nearest("open the window")
    unknown = Memory(SOURCES, ["A", "B", "C"], ["", "", ""])
    assert unknown.nearest("open the window", 9) == memory.nearest("open the window", 9)


def cosines(text: str, known: list[str]) -> np.ndarray:
    """As scikit-learn's TfidfVectorizer with ngram_range=(1, 2) has it, from whole rows."""

    def terms(line: str) -> list[str]:
        words = line.split()
        return [*words, *map(" ".join, pairwise(words))]

    names = sorted({term for line in known for term in terms(line)})
    counts = np.array([[terms(line).count(name) for name in names] for line in [text, *known]])
    idf = np.log((1 + len(known)) / (1 + (counts[1:] > 0).sum(0))) + 1
    rows = counts * idf
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[1:] @ rows[0]


def test_likeness_is_the_cosine_of_whole_rows() -> None:
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    texts = [" ".join(draw.choice(words, 6)) for _ in range(40)]
    memory = Memory(texts, [str(i) for i in range(40)])
    for text in [" ".join(draw.choice(words, 5)) for _ in range(20)]:
        wanted = cosines(text, texts)
        found = [wanted[int(target)] for _, target in memory.nearest(text, 5)]
        np.testing.assert_allclose(found, np.sort(wanted)[:-6:-1], rtol=1e-12)


class Watching(RuleModel):
    """Keeps the prompts."""

    def write(self, prompts: Any, decoding: Any, guides: Any = ()) -> Any:
        self.asked = [self.tokenizer.decode(ids[1:]) for ids in prompts]
        return super().write(prompts, decoding)


def asked(task: Translation, source: str, window: int = 256) -> str:
    model = Watching(window=window)
    task.answer(model, [{"source": source}], task.decoding)
    return model.asked[0]


def test_examples_stand_before_a_source_the_most_alike_last() -> None:
    task = Translation(template="{source} =", examples=2).learn_from(PAIRS)
    wanted = "red house = maison rouge\n\nred sky = ciel rouge\n\nred sky house ="
    assert asked(task, "red sky house") == wanted
    assert asked(task, "blue sky") == "red sky = ciel rouge\n\nblue sky = ciel bleu\n\nblue sky ="
    assert asked(task, "unlike") == "unlike ="


def test_in_training_neither_the_pair_nor_its_group_is_shown() -> None:
    task = Translation(template="{source} =", examples=3).learn_from(PAIRS)
    (example,) = task.encode(PAIRS[0], TOKENIZER, 256)
    text = TOKENIZER.decode(example.ids[1:-1])
    assert text == "red sky = ciel rouge\n\nred house = maison rouge"
    told = [i for i, counts in zip(example.ids, example.counted, strict=True) if counts]
    assert TOKENIZER.decode(told[:-1]) == " maison rouge", "an example is not learned again"
    (alone,) = task.encode({**PAIRS[0], "group": None}, TOKENIZER, 256)
    assert "red car = voiture rouge" in TOKENIZER.decode(alone.ids), "without a group only itself is left out"
    assert make("translation", settings_of(task)) == task


def test_a_hint_comes_from_another_group_too() -> None:
    task = Translation(hints=Hints.MEMORY).learn_from(PAIRS)
    (example,) = task.encode({**PAIRS[1], "target": "ciel rouge"}, TOKENIZER, 256)
    assert TOKENIZER.decode([i for i, nats in example.hints if nats][:-1]) == " ciel rouge"


def test_fewer_are_shown_where_there_is_no_room() -> None:
    task = Translation(template="{source} =", examples=3).learn_from(PAIRS)
    whole = len(asked(task, "red sky")) + 1
    assert asked(task, "red sky", window=2 * whole).count("\n\n") == 3
    assert asked(task, "red sky", window=2 * whole - 2).count("\n\n") == 2
    assert asked(task, "red sky", window=20) == "red sky ="
    (example,) = task.encode(PAIRS[3], TOKENIZER, 22)  # its prompt and what it tells take 22 tokens
    assert TOKENIZER.decode(example.ids[1:-1]) == "blue sky = ciel bleu"
    with pytest.raises(Unfit):
        task.encode(PAIRS[3], TOKENIZER, 20)


def test_a_memory_kept_before_there_were_groups_is_read() -> None:
    settings = {"hints": "memory", "sources": ["red sky"], "targets": ["ciel rouge"]}
    assert asked(make("translation", {**settings, "examples": 1}), "red sky").startswith("red sky\n")
