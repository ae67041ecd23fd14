"""From records to examples, with a report of every record that was left out (no torch)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from wafergpt.config import require_finite
from wafergpt.errors import DataError
from wafergpt.tasks.task import Encoded, Record, Task, Unfit
from wafergpt.tokenizer.bpe import Tokenizer

DUPLICATE = "said before"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a split gives: `records[i]` became `encoded[i]` (several for a long text)."""

    records: tuple[Record, ...]
    encoded: tuple[tuple[Encoded, ...], ...]
    n_read: int
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> how many
    n_disputed: int = 0  # kept though the same question has another answer, too

    @property
    def rows(self) -> list[Encoded]:
        """Every example."""
        return [row for rows in self.encoded for row in rows]

    def report(self, what: str) -> str:
        """One line: how many were read, left out and why, kept."""
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.left_out.items())
        parts = [f"{what}: {self.n_read:,} read", f"left out {reasons}" if reasons else "none left out"]
        if self.n_disputed:
            parts.append(f"{self.n_disputed:,} have another answer to a question asked before (kept)")
        return "; ".join([*parts, f"{len(self.records):,} used"])


def collect(
    task: Task, records: Sequence[Record], tokenizer: Tokenizer, window: int, *, what: str = "the data"
) -> Examples:
    """Encode every record that can be learned from, each question with the same answer once.

    Raises DataError when none is left, and for what no record may hold.
    """
    left_out: Counter[str] = Counter()
    kept: list[Record] = []
    encoded: list[tuple[Encoded, ...]] = []
    answers: dict[str, set[str]] = {}
    n_disputed = 0
    for record in records:
        try:
            rows = task.encode(record, tokenizer, window)
        except Unfit as unfit:
            left_out[unfit.reason] += 1
            continue
        known, target = answers.setdefault(task.key(record), set()), task.target(record)
        if target in known:
            left_out[DUPLICATE] += 1
            continue
        n_disputed += bool(known)
        known.add(target)
        kept.append(record)
        encoded.append(tuple(rows))
    found = Examples(
        records=tuple(kept),
        encoded=tuple(encoded),
        n_read=len(records),
        left_out=dict(left_out),
        n_disputed=n_disputed,
    )
    if not kept:
        raise DataError(f"there is nothing to learn from: {found.report(what)} (window: {window} tokens)")
    return found


def usable(task: Task, records: Sequence[Record]) -> tuple[list[Record], dict[str, int]]:
    """Records that a task can be asked and judged by, without tokens, and what was left out."""
    kept, left_out = [], Counter[str]()
    for record in records:
        try:
            if not task.key(record):
                raise Unfit("empty")
            task.target(record)
        except Unfit as unfit:
            left_out[unfit.reason] += 1
        else:
            kept.append(record)
    return kept, dict(left_out)


def split_off(
    task: Task, records: Sequence[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """(kept, split off): about `fraction` by a hash of what is asked, so that a question is never in both."""
    require_finite("the fraction split off", fraction, minimum=0.0, maximum=0.9)
    sides: tuple[list[Record], list[Record]] = [], []
    for record in records:
        try:
            key = task.key(record)
        except Unfit:
            key = ""
        digest = hashlib.sha256(f"{seed}/{key}".encode("utf-8", "replace")).digest()
        sides[int.from_bytes(digest[:8], "little") / 2**64 < fraction].append(record)
    return sides


def leaks(task: Task, train: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """What is asked in both splits, each once."""
    asked = _keys(task, train)
    return sorted(asked & _keys(task, test))


def _keys(task: Task, records: Sequence[Record]) -> set[str]:
    found = set()
    for record in records:
        try:
            found.add(task.key(record))
        except Unfit:
            continue
    return found - {""}
