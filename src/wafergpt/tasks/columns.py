"""Which columns of a file are a task's fields: by their usual names, or as told (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wafergpt.config import require
from wafergpt.errors import DataError, did_you_mean
from wafergpt.tasks.task import Record, Task

# Names that common data sets give a field, most usual first. A dot steps into a mapping.
USUAL: dict[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "content",
        "document",
        "headline",
        "review",
        "utterance",
        "article",
        "prompt",
    ),
    "label": ("label", "labels", "class", "category", "intent", "sentiment"),
    "source": ("source", "src", "input", "prompt"),
    "target": ("target", "tgt", "translation", "output", "completion"),
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph"),
    "answers": ("answers", "answer"),
    "messages": ("messages", "conversations", "conversation"),
    "title": ("title", "heading", "summary", "completion"),
    "style": ("style",),
}
OPTIONAL = ("style",)
# Pairs that make a conversation of two turns.
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("prompt", "response"))


def parse(assignments: Iterable[str]) -> dict[str, str]:
    """`field=column` texts as a mapping. Raises ConfigError."""
    found = {}
    for text in assignments:
        field, separator, column = text.partition("=")
        require(bool(field and separator and column), f"'{text}' is not of the form field=column")
        found[field.strip()] = column.strip()
    return found


def records_of(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    where: str,
    *,
    told: Mapping[str, str] | None = None,
    with_answers: bool = True,
) -> list[Record]:
    """The rows by the task's field names; without `with_answers` what is asked suffices.

    `told` maps field to column. Raises DataError naming what is missing, with a suggestion; ConfigError.
    """
    told = dict(told or {})
    needed = [*task.asked, *(task.answered if with_answers else ())]
    fields = [*needed, *(f for f in (*task.answered, *OPTIONAL) if f not in needed)]
    for field in told:
        require(field in fields, f"the task {task.name} has no field '{field}'{did_you_mean(field, fields)}")
    if not rows:
        raise DataError(f"'{where}' is empty: it holds no example")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {field: _column(field, names, rows[0], told) for field in fields}
    pair = _pair(names) if "messages" in needed and columns["messages"] is None else None
    for field in needed:
        if columns[field] is None and not (field == "messages" and pair):
            raise DataError(_missing(field, names, where))
    if pair:
        return [_conversation(row, pair) for row in rows]
    return [
        {field: _value(row, column) for field, column in columns.items() if column is not None}
        for row in rows
    ]


def _column(field: str, names: list[str], first: Mapping[str, Any], told: Mapping[str, str]) -> str | None:
    if field in told:
        top = told[field].partition(".")[0]
        if top not in names:
            raise DataError(f"there is no column '{told[field]}'{did_you_mean(top, names)}")
        return told[field]
    both = first.get("translation")
    if field in ("source", "target") and isinstance(both, Mapping) and len(both) == 2:
        return f"translation.{list(both)[field == 'target']}"  # Hugging Face's form: {"en": ..., "fr": ...}
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in USUAL[field] if name in lower), None)


def _value(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for step in column.split(".") if column not in row else [column]:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _pair(names: list[str]) -> tuple[str, str] | None:
    lower = {name.lower(): name for name in names}
    return next(((lower[a], lower[b]) for a, b in _PAIRS if a in lower and b in lower), None)


def _conversation(row: Mapping[str, Any], pair: tuple[str, str]) -> Record:
    asked, told = (str(row.get(name) or "") for name in pair)
    if pair[0].lower() == "instruction" and row.get("input"):
        asked = f"{asked}\n{row['input']}"
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}


def _missing(field: str, names: list[str], where: str) -> str:
    have = ", ".join(names[:12]) or "none"
    close = did_you_mean(field, names)
    usual = ", ".join(USUAL[field])
    told = f"say which with --columns {field}=NAME"
    return f"'{where}' has no column for '{field}' ({usual}); it has {have}{close}; {told}"
