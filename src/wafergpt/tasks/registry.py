"""The tasks by name, and a task as plain data (`task.json`) and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from wafergpt.config import from_dict, to_dict
from wafergpt.errors import ConfigError, did_you_mean
from wafergpt.tasks.chat import Chat
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.qa import QuestionAnswering
from wafergpt.tasks.task import Task
from wafergpt.tasks.translation import Translation
from wafergpt.tasks.writing import Writing

TASKS: dict[str, type] = {
    kind.name: kind for kind in (Classification, Translation, QuestionAnswering, Chat, Writing)
}
_OTHER_NAMES = {
    "classify": "classification", "text-classification": "classification", "translate": "translation",
    "answer": "qa", "question-answering": "qa", "write": "writing", "text-generation": "writing",
}  # fmt: skip


def make(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """The task `name` with `settings` for its fields. Raises ConfigError."""
    known = _OTHER_NAMES.get(name, name)
    if known not in TASKS:
        hint = did_you_mean(name, [*TASKS, *_OTHER_NAMES])
        raise ConfigError(f"unknown task '{name}'{hint}; there are {', '.join(TASKS)}")
    task: Task = from_dict(TASKS[known], dict(settings or {}), known)
    return task


def settings_of(task: Task) -> dict[str, Any]:
    """The fields of a task as plain data; `make(task.name, ...)` gives it back."""
    found: dict[str, Any] = to_dict(task)
    return found


def setting_names(name: str) -> list[str]:
    """The fields of a task."""
    return [field.name for field in fields(TASKS[name])]
