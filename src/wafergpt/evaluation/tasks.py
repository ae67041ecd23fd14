"""A task's scores on test records, and what tasks have in common: perplexity, calibration (no torch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wafergpt.errors import DataError
from wafergpt.tasks.calibration import Bin, expected_calibration_error, reliability
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.examples import usable
from wafergpt.tasks.pointing import Told
from wafergpt.tasks.task import (
    TOO_LONG,
    Answer,
    Decoding,
    Guide,
    Ids,
    Model,
    Objective,
    Record,
    Task,
    Unfit,
)

CHUNK = 64  # records answered at once


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """`scores` by name; `left_out` says how many records could not be judged, and why."""

    scores: dict[str, float]
    n: int
    left_out: dict[str, int]
    answers: tuple[Answer, ...]
    records: tuple[Record, ...]
    bins: tuple[Bin, ...] = ()  # of classification: the reliability diagram

    def lines(self) -> list[str]:
        """As a person reads them."""
        found = [f"{name:<28} {value:.4f}" for name, value in self.scores.items()]
        if self.left_out:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.left_out.items())
            found.append(f"left out: {reasons}")
        return found


def answers(
    task: Task, model: Model, records: Sequence[Record], decoding: Decoding | None = None, chunk: int = CHUNK
) -> Iterator[Answer]:
    """An answer to each record, `chunk` at a time."""
    for at in range(0, len(records), chunk):
        yield from task.answer(model, records[at : at + chunk], decoding or task.decoding)


def score(
    task: Task,
    model: Model,
    records: Sequence[Record],
    *,
    decoding: Decoding | None = None,
    on_progress: Callable[[int], None] = lambda n: None,
) -> TaskScores:
    """Ask every record that can be judged and fits the window, and judge; the others are counted.

    `on_progress` is told how many are answered. Raises DataError when none can be judged.
    """
    judged, left_out = usable(task, records)
    kept = [record for record in judged if _fits(task, model, record)]
    if len(kept) < len(judged):
        left_out[TOO_LONG] = len(judged) - len(kept)
    if not kept:
        raise DataError(f"none of {len(records):,} records can be judged: {left_out}")
    asked = [task.question(record) for record in kept]
    found = []
    for answer in answers(task, model, asked, decoding):
        found.append(answer)
        on_progress(len(found))
    scores = task.score(found, kept)
    bins: list[Bin] = []
    if isinstance(task, Classification):
        bins = reliability_of(task, found, kept)
        scores["calibration_error"] = expected_calibration_error(bins)
    elif task.objective is Objective.TOKENS:
        scores["perplexity"] = perplexity(task, model, kept)
    return TaskScores(
        scores=scores,
        n=len(kept),
        left_out=left_out,
        answers=tuple(found),
        records=tuple(kept),
        bins=tuple(bins),
    )


def _fits(task: Task, model: Model, record: Record) -> bool:
    try:
        task.encode(record, model.tokenizer, model.window)
    except Unfit as unfit:
        return unfit.reason != TOO_LONG
    return True


def reliability_of(task: Task, found: Sequence[Answer], records: Sequence[Record]) -> list[Bin]:
    """Confidence against accuracy."""
    right = [answer.text == task.target(record) for answer, record in zip(found, records, strict=True)]
    return reliability(np.array([answer.confidence for answer in found]), np.array(right))


def perplexity(task: Task, model: Model, records: Sequence[Record]) -> float:
    """exp of the mean nats of the tokens that count in training: the answers', or all of an author's."""
    rows: list[tuple[Ids, int]] = []
    counted: list[tuple[bool, ...]] = []
    guides: list[Guide | None] = []
    for record in records:
        try:
            encoded = task.encode(record, model.tokenizer, model.window)
        except Unfit:
            continue
        for example in encoded:
            first = example.counted.index(True)
            rows.append((example.ids, first))
            counted.append(example.counted[first:])
            guides.append(Told(example.hints[first:]) if example.hints else None)
    nats, n = 0.0, 0
    for at in range(0, len(rows), CHUNK):
        found = model.log_probabilities(rows[at : at + CHUNK], guides[at : at + CHUNK])
        for row, counts in zip(found, counted[at : at + CHUNK], strict=True):
            nats -= sum(p for p, is_counted in zip(row, counts, strict=True) if is_counted)
            n += sum(counts)
    return math.exp(nats / n) if n else math.nan
