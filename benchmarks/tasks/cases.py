"""What `make tasks` measures: data sets, settings, the measure that decides, how much fits the time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from wafergpt.assets import labelled

Record = dict[str, Any]
POOL = "pool"  # of a help desk: all passages that may be asked for


@dataclass(frozen=True, kw_only=True)
class Case:
    """One data set. `measure` decides, among `measures`; a higher one is better unless `lower` says so."""

    dataset: str
    measure: str
    settings: dict[str, Any] = field(default_factory=dict)  # of the task
    new_tokens: int = 0  # that the vocabulary gets
    lower: bool = False
    n_train: int
    n_validation: int = 200
    n_test: int
    epochs: float = 1.0
    seq_len: int | None = None  # longest example
    batch_examples: int = 4
    max_new_tokens: int = 96
    frequency_penalty: float = 0.0  # of written answers

    @property
    def task(self) -> str:
        """The data set's task."""
        return labelled.get_dataset(self.dataset).task


def _translation(dataset: str, n_train: int, frequency_penalty: float, **rest: Any) -> Case:
    return Case(
        dataset=dataset,
        measure="chrf",
        n_train=n_train,
        n_validation=60,
        n_test=150,
        seq_len=160,
        frequency_penalty=frequency_penalty,
        **rest,
    )


# Sizes are meant for 90 minutes of two cores, 81 runs and their scores; docs/explanation/task_scores.md has
# what was measured.
CASES = (
    Case(
        dataset="headlines",
        measure="accuracy",
        n_train=4_000,
        n_validation=800,
        n_test=2_500,
        batch_examples=16,
    ),
    Case(dataset="film-sentences", measure="accuracy", n_train=3_500, n_test=2_014, batch_examples=9),
    Case(dataset="intents", measure="accuracy", n_train=5_000, n_test=1_997, epochs=2.0, batch_examples=24),
    _translation(
        "kjv-bbe",
        8_000,
        0.3,
        batch_examples=8,
        settings={"hints": "source", "follow": 1.0, "candidates": 8},
    ),
    _translation("help-en-fr", 4_000, 0.6, batch_examples=8, epochs=2.0, new_tokens=2_000),
    _translation(
        "help-en-zh", 4_000, 0.0, batch_examples=8, epochs=3.0, new_tokens=2_000, max_new_tokens=120
    ),
    Case(
        dataset="squad",
        measure="f1",
        settings={"shared_words": 1.0, "choose": "expected_f1"},
        n_train=600,
        n_validation=60,
        n_test=600,
    ),
    Case(
        dataset="help-desk",
        measure="ranked_first",
        n_train=1_920,
        n_validation=60,
        n_test=300,
        seq_len=320,
        batch_examples=5,
    ),
    Case(dataset="moby-dick", measure="perplexity", lower=True, n_train=25, n_validation=4, n_test=8),
)


def sample(records: list[Record], n: int, seed: int = 0) -> list[Record]:
    """At most `n` of the records, always the same, in their order."""
    if len(records) <= n:
        return records
    chosen = sorted(random.Random(seed).sample(range(len(records)), n))
    return [records[i] for i in chosen]


def conversations(records: list[Record], most_turns: int = 3) -> list[Record]:
    """Questions about one page that stand together become one conversation, of `most_turns` turns at most.

    A model that has only seen single questions ends the text after its first answer.
    """
    joined: list[Record] = []
    for record in records:
        last = joined[-1] if joined else None
        if last and last["group"] == record["group"] and len(last["messages"]) < 2 * most_turns:
            joined[-1] = {**last, "messages": [*last["messages"], *record["messages"]]}
        else:
            joined.append(record)
    return joined


def splits(case: Case) -> dict[str, list[Record]]:
    """The records that are used."""
    found = labelled.load_all(case.dataset, allow_sdist=True)
    sizes = {"train": case.n_train, "validation": case.n_validation, "test": case.n_test}
    data = {split: sample(found[split], n) for split, n in sizes.items()}
    if case.task == "chat":
        data[POOL] = found["test"]
        for split in ("train", "validation"):
            data[split] = conversations(data[split])
    known = {record.get("label") for record in data["train"]}
    for split in ("validation", "test"):  # of a small sample: labels that it lacks cannot be learned from it
        kept = [record for record in data[split] if record.get("label") in known]
        if len(kept) < len(data[split]):
            print(f"{case.dataset}: {len(data[split]) - len(kept)} of {split} have labels the sample lacks")
        data[split] = kept
    return data
