"""A fine-tuned model in use: questions in, answers with a confidence out. Layer: beside `api`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.checkpoints.task_files import TaskFiles, read_task, rewrite_task
from wafergpt.config import from_dict, require
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.evaluation import tasks as evaluation
from wafergpt.inference.task_model import TaskModel
from wafergpt.loading import LoadedModel, load
from wafergpt.tasks import calibration, registry
from wafergpt.tasks.chat import SYSTEM, Chat, messages_of
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.examples import usable
from wafergpt.tasks.ranking import Ranker
from wafergpt.tasks.task import Answer, Decoding, Objective, Record, Task, answer_of, check_room


class Pipeline:
    """A task on a loaded model; `notes` say what the user should know."""

    def __init__(self, task: Task, loaded: LoadedModel, files: TaskFiles | None) -> None:
        """Raises ConfigError when the task needs a head that the model does not have."""
        self.task = task
        self.loaded = loaded
        self.notes: tuple[str, ...] = ()
        if files is None:
            self.notes = (f"this model was not fine-tuned for {task.name}; its answers are a base model's",)
            require(
                task.objective is Objective.TOKENS,
                f"this model has no head for {task.name}: run `wafergpt finetune --task {task.name}` first",
            )
        else:
            _check_head(task, files, loaded.config.d_model)
        self.calibration: Mapping[str, Any] | None = files.document.get("calibration") if files else None
        self.model = TaskModel(loaded.engine, loaded.tokenizer, files.head if files else None)

    def __call__(self, asked: str | Record | Sequence[str | Record], **decoding: Any) -> Any:
        """An `Answer` to one question, a list of them to several.

        A question is a record of the task's fields, or the text of its first one. `decoding` are fields of
        `tasks.task.Decoding`. Raises ConfigError.
        """
        if isinstance(asked, (str, Mapping)):
            return self.answers([asked], **decoding)[0]
        return self.answers(asked, **decoding)

    def answers(self, asked: Sequence[str | Record], **decoding: Any) -> list[Answer]:
        """An answer to each question."""
        return list(self.stream(asked, **decoding))

    def stream(self, asked: Sequence[str | Record], **decoding: Any) -> Iterator[Answer]:
        """As `answers`, as they become ready."""
        records = [self.record(question) for question in asked]
        yield from evaluation.answers(self.task, self.model, records, self.decoding(decoding))

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        on_text: Callable[[str], None] = lambda text: None,
        **decoding: Any,
    ) -> tuple[Answer, list[Mapping[str, str]]]:
        """The assistant's next words, and the messages that fitted the window with room for them.

        The oldest turns go first, a system message stays. `on_text` is given the text as it is written.
        Raises ConfigError when the last message does not fit.
        """
        assert isinstance(self.task, Chat), "only a chat has turns"
        chosen = self.decoding(decoding)
        kept = list(messages)
        first = 1 if kept and kept[0].get("role") == SYSTEM else 0
        while len(kept) > first + 1:
            n = len(self.task.prompt(messages_of({"messages": kept}), self.model.tokenizer))
            if n + min(chosen.max_new_tokens, self.model.window // 4) <= self.model.window:
                break
            del kept[first]
        prompt = self.task.prompt(messages_of({"messages": kept}), self.model.tokenizer)
        check_room(prompt, self.model.window, "a conversation")
        return answer_of(self.model.write_live(tuple(prompt), chosen, on_text)), kept

    def ranker(self, passages: Sequence[str]) -> Ranker:
        """What tells which of the passages answers a question. Raises ConfigError unless this is a chat."""
        require(isinstance(self.task, Chat), f"a {self.task.name} model ranks no passages; a chat does")
        assert isinstance(self.task, Chat), "just required"
        return Ranker(self.task, self.model, passages)

    def record(self, question: str | Record) -> Record:
        """A question by its fields. Raises ConfigError naming what is missing or empty."""
        first = self.task.asked[0]
        record = {first: question} if isinstance(question, str) else question
        for name in self.task.asked:
            value = record.get(name)
            empty = value is None or (isinstance(value, str) and not value.strip())
            require(not empty, f"{self.task.name} needs a '{name}', and it must not be empty")
        return record

    def decoding(self, changes: Mapping[str, Any]) -> Decoding:
        """The task's, with changes; what is None stays. Raises ConfigError for an unknown name."""
        given = {name: value for name, value in changes.items() if value is not None}
        return from_dict(Decoding, {**asdict(self.task.decoding), **given}, "decoding")

    def score(self, records: Sequence[Record], **options: Any) -> evaluation.TaskScores:
        """How good its answers to test records are. Raises DataError, ConfigError."""
        return evaluation.score(self.task, self.model, records, **options)


def _check_head(task: Task, files: TaskFiles, d_model: int) -> None:
    """Raise CheckpointError for a head that is missing or of another shape."""
    if task.objective is Objective.TOKENS:
        return
    n = len(task.labels) if isinstance(task, Classification) else 2
    shapes = {name: array.shape for name, array in files.head.items()}
    if shapes != {"weight": (n, d_model), "bias": (n,)}:
        raise CheckpointError(
            f"the head for {task.name} should have {n} outputs of width {d_model}; it has {shapes}"
        )


def pipeline(
    task: str,
    model: LoadedModel | Path | str,
    *,
    settings: Mapping[str, Any] | None = None,
    **loading: Any,
) -> Pipeline:
    """The task `task` on a fine-tuned model, or on a base where no head is needed.

    `settings` change fields of the task; `loading` are options of `load`. Raises ConfigError for a model that
    was taught another task, what `load` raises.
    """
    loaded = model if isinstance(model, LoadedModel) else load(model, **loading)
    wanted = registry.make(task).name
    files = task_files_of(loaded.checkpoint_path)
    if files is None:
        return Pipeline(registry.make(wanted, settings), loaded, None)
    taught = str(files.document.get("task"))
    require(
        taught == wanted, f"'{loaded.checkpoint_path}' was taught {taught}, not {wanted}; ask it for {taught}"
    )
    return Pipeline(_task_of(files, settings or {}), loaded, files)


def _task_of(files: TaskFiles, settings: Mapping[str, Any]) -> Task:
    stored = files.document.get("settings")
    if not isinstance(stored, dict):
        raise CheckpointError("task.json holds no settings")
    try:
        return registry.make(str(files.document.get("task")), {**stored, **settings})
    except ConfigError as error:
        raise CheckpointError(f"task.json: {error}") from None


def task_files_of(path: Path) -> TaskFiles | None:
    """The task of a checkpoint or quantized folder; None where there is none."""
    return read_task(path) if path.is_dir() else None


def calibrate(out: Path, records: Sequence[Record]) -> list[str]:
    """Fit the temperature of the classifier in `out` on validation records and store it with what it changed.

    Returns lines for a person. Does nothing, and says so, for one that is calibrated already.
    """
    found = pipeline("classification", out)
    if found.calibration is not None:
        return [_calibration_line(found.calibration)]
    task = found.task
    assert isinstance(task, Classification)
    kept, _ = usable(task, records)
    logits = np.concatenate(
        [
            task.logits(found.model, kept[i : i + evaluation.CHUNK])
            for i in range(0, len(kept), evaluation.CHUNK)
        ]
    )
    labels = np.array([task.number_of(record["label"]) for record in kept], np.int64)
    temperature = min(max(calibration.fit_temperature(logits, labels), 1e-2), 1e2)
    sides = []
    for value in (1.0, temperature):
        p = calibration.softmax(logits, value)
        sides.append(calibration.reliability(p.max(1), p.argmax(1) == labels))
    document = {
        "temperature": temperature,
        "n": len(kept),
        "error_before": calibration.expected_calibration_error(sides[0]),
        "error_after": calibration.expected_calibration_error(sides[1]),
        "reliability": [asdict(one) for one in sides[1]],
    }
    files = task_files_of(found.loaded.checkpoint_path)
    assert files is not None
    settings = registry.settings_of(replace(task, temperature=temperature))
    rewrite_task(
        found.loaded.checkpoint_path,
        json.loads(json.dumps({**files.document, "settings": settings, "calibration": document})),
    )
    return [_calibration_line(document)]


def _calibration_line(document: Mapping[str, Any]) -> str:
    return (
        f"calibrated on {document['n']:,} validation examples: temperature {document['temperature']:.3f},"
        f" expected calibration error {document['error_before']:.4f} before,"
        f" {document['error_after']:.4f} after (on the same examples)"
    )
