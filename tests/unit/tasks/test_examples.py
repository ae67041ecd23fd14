"""Records to examples: columns by their usual names, the report of what was left out, splits, leaks."""

from __future__ import annotations

from typing import Any

import pytest
from task_lab import byte_tokenizer

from wafergpt.errors import ConfigError, DataError
from wafergpt.tasks import columns, examples
from wafergpt.tasks.registry import make

TOKENIZER = byte_tokenizer()
TRANSLATION = make("translation")


def records(task: str, row: dict[str, Any], **told: str) -> dict[str, Any]:
    return dict(columns.records_of(make(task), [row], "data.jsonl", told=told)[0])


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("classification", {"Sentence": "x", "category": 1}, {"text": "x", "label": 1}),
        ("translation", {"translation": {"en": "a", "fr": "b"}}, {"source": "a", "target": "b"}),
        ("translation", {"src": "a", "tgt": "b", "id": 3}, {"source": "a", "target": "b"}),
        (
            "qa",
            {"query": "q", "passage": "p", "answer": "a"},
            {"question": "q", "context": "p", "answers": "a"},
        ),
        ("chat", {"conversations": [1]}, {"messages": [1]}),
        ("writing", {"content": "x"}, {"text": "x"}),
    ],
)
def test_usual_columns(task: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert records(task, row) == expected


@pytest.mark.parametrize("row", [{"prompt": "a b", "completion": "c"},
                                 {"instruction": "a", "input": "b", "output": "c"}])  # fmt: skip
def test_a_pair_is_a_conversation(row: dict[str, str]) -> None:
    messages = records("chat", row)["messages"]
    assert [(m["role"], m["content"].split()) for m in messages] == [
        ("user", ["a", "b"]),
        ("assistant", ["c"]),
    ]


def test_columns_as_told_step_into_mappings() -> None:
    row = {"pair": {"en": "a", "fr": "b"}, "source": "x"}
    assert records("translation", row, source="pair.fr", target="pair.en") == {"source": "b", "target": "a"}


def test_a_missing_column_is_named_with_a_suggestion() -> None:
    with pytest.raises(
        DataError, match=r"no column for 'label'.* did you mean 'lable'.*--columns label=NAME"
    ):
        records("classification", {"text": "x", "lable": "y"})
    with pytest.raises(DataError, match="no column 'engl'; did you mean 'english'"):
        records("translation", {"english": "a", "target": "b"}, source="engl")
    with pytest.raises(ConfigError, match="has no field 'sorce'; did you mean 'source'"):
        records("translation", {"english": "a"}, sorce="english")
    with pytest.raises(ConfigError, match="not of the form field=column"):
        columns.parse(["source"])


def test_an_empty_file() -> None:
    with pytest.raises(DataError, match=r"'data.jsonl' is empty"):
        columns.records_of(TRANSLATION, [], "data.jsonl")


def test_what_is_left_out_is_counted_by_reason() -> None:
    pairs = [("a", "b"), ("A ", "b"), ("a", "c"), ("", "b"), ("long" * 40, "b"), ("d", "")]
    found = examples.collect(
        TRANSLATION, [{"source": s, "target": t} for s, t in pairs], TOKENIZER, 64, what="train.csv"
    )
    assert found.left_out == {"said before": 1, "empty": 2, "longer than the window": 1}
    assert found.n_disputed == 1 and len(found.rows) == 2
    report = found.report("train.csv")
    assert report.startswith("train.csv: 6 read; left out 1 said before, 2 empty, 1 longer than the window")
    assert report.endswith("1 have another answer to a question asked before (kept); 2 used")


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to learn from: data: 1 read; left out 1 empty"):
        examples.collect(TRANSLATION, [{"source": "", "target": "b"}], TOKENIZER, 64, what="data")


def test_a_question_is_never_on_both_sides() -> None:
    rows = [{"source": f"text {i % 200}", "target": str(i)} for i in range(600)]
    kept, off = examples.split_off(TRANSLATION, rows, 0.2, seed=1)
    assert len(kept) + len(off) == 600 and 60 <= len(off) <= 180  # 120 expected, questions come in threes
    assert examples.leaks(TRANSLATION, kept, off) == []
    again = examples.split_off(TRANSLATION, rows[::-1], 0.2, seed=1)
    assert sorted(map(str, again[1])) == sorted(map(str, off))
    assert examples.split_off(TRANSLATION, rows, 0.2, seed=2)[1] != off


def test_leaks_are_found_whatever_their_case_and_spaces() -> None:
    train = [{"source": "The  cat", "target": "x"}, {"source": "dog", "target": "y"}]
    test = [{"source": "the cat", "target": "z"}, {"source": "", "target": ""}]
    assert examples.leaks(TRANSLATION, train, test) == ["the cat"]
