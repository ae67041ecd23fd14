"""Classification: by a head over the last real token, or by how likely the model finds each label's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from wafergpt.config import require, require_finite
from wafergpt.errors import ConfigError, DataError, did_you_mean, shown
from wafergpt.tasks import metrics
from wafergpt.tasks.calibration import softmax
from wafergpt.tasks.task import (
    TOO_LONG,
    Answer,
    Decoding,
    Encoded,
    Model,
    Objective,
    Record,
    Unfit,
    asked_and_told,
    check_template,
    squeezed,
    start,
    text_of,
)
from wafergpt.tokenizer.bpe import Tokenizer


class Method(StrEnum):
    """How a label is found."""

    HEAD = "head"
    LIKELIHOOD = "likelihood"


_TEMPLATES = {Method.HEAD: "{text}", Method.LIKELIHOOD: "{text}\nLabel:"}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Fields `text` and `label`. The confidence is the label's probability, calibrated by `temperature`."""

    labels: tuple[str, ...] = ()  # in their order; none: those of the training records, sorted
    method: Method = Method.HEAD
    template: str | None = None  # none: the text; for likelihood, the text and "Label:"
    cut: bool = False  # of a text that is too long, read the beginning
    temperature: float = 1.0  # logits are divided by it

    name = "classification"
    asked = ("text",)
    answered = ("label",)
    decoding = Decoding()

    def __post_init__(self) -> None:
        if self.template is None:
            object.__setattr__(self, "template", _TEMPLATES[self.method])
        check_template(self.template or "", ["text"])
        require((self.template or "").count("{text}") == 1, "the template must have one place {text}")
        require(len(set(self.labels)) == len(self.labels), "a label stands twice in labels")
        require_finite("temperature", self.temperature, minimum=1e-3, maximum=1e3)

    @property
    def objective(self) -> Objective:
        """A head learns labels; else the label's name is learned token by token."""
        return Objective.LABEL if self.method is Method.HEAD else Objective.TOKENS

    def learn_from(self, records: Sequence[Record]) -> Classification:
        """With the labels of the records. Raises DataError when there are fewer than two."""
        found = sorted({label_of(record["label"]) for record in records})
        if len(found) < 2:
            one = f"only the label {shown(found[0])}" if found else "no label"
            raise DataError(f"the training examples have {one}; a classifier needs at least two")
        if not self.labels:
            return replace(self, labels=tuple(found))
        for label in found:
            self.number_of(label)
        return self

    def number_of(self, label: Any) -> int:
        """Which label. Raises DataError for one that training did not know."""
        name = label_of(label)
        if name not in self.labels:
            known = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
            hint = did_you_mean(name, self.labels)
            raise DataError(f"the label {shown(name)} is not one of training's: {known}{hint}")
        return self.labels.index(name)

    def key(self, record: Record) -> str:
        """The text."""
        return squeezed(str(record.get("text") or ""))

    def target(self, record: Record) -> str:
        """The label."""
        return label_of(record["label"])

    def question(self, record: Record) -> Record:
        """As it is."""
        return record

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """The text; with likelihood, then the label's name and an end of text."""
        text_of(record, "text")
        number = self.number_of(record["label"])
        told = _told(tokenizer, self.labels[number]) if self.method is Method.LIKELIHOOD else []
        room = window - max(0, len(told) - 1)  # the last token is only predicted
        prompt = self._prompt(record, tokenizer, room)
        if len(prompt) > room:
            raise Unfit(TOO_LONG)
        if self.method is Method.HEAD:
            return [Encoded(ids=tuple(prompt), label=number)]
        return [asked_and_told(prompt, told, window)]

    def _prompt(self, record: Record, tokenizer: Tokenizer, room: int) -> list[int]:
        """The prompt's ids; with `cut`, the text's beginning that fits into `room` with the rest."""
        before, after = (self.template or "").split("{text}")
        ids, tail = start(tokenizer, before + str(record.get("text") or "")), tokenizer.encode(after)
        if self.cut and len(ids) + len(tail) > room:
            require(room > len(tail), f"the window leaves no room for a text beside the template {after!r}")
            ids = ids[: room - len(tail)]
        return ids + tail

    def logits(self, model: Model, records: Sequence[Record]) -> np.ndarray:
        """[N, C]: what the head says, or the nats of each label's name. Raises ConfigError."""
        told = []
        if self.method is Method.LIKELIHOOD:
            told = [_told(model.tokenizer, label) for label in self.labels]
        room = model.window - max([0, *(len(ids) - 1 for ids in told)])
        prompts = [self._prompt(record, model.tokenizer, room) for record in records]
        for prompt in prompts:
            require(
                len(prompt) <= room,
                f"a text has {len(prompt)} tokens with its prompt, more than the context window's {room};"
                " shorten it, or train with `cut` to read beginnings only",
            )
        if self.method is Method.HEAD:
            hidden = model.hidden([tuple(p) for p in prompts], last_only=True)
            # One by one: products of several rows round differently, and no answer may know its company.
            return np.concatenate([head_logits(model, states) for states in hidden])
        rows = [((*prompt, *label), len(prompt)) for prompt in prompts for label in told]
        found = [sum(each) for each in model.log_probabilities(rows)]
        return np.array(found, np.float32).reshape(len(prompts), len(told))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """The likeliest label of each text, with the probability of every label."""
        answers = []
        for row in softmax(self.logits(model, records), self.temperature):
            best = int(row.argmax())
            odds = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append(
                Answer(text=self.labels[best], confidence=float(row[best]), details={"probabilities": odds})
            )
        return answers

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """Accuracy and macro-F1. Raises DataError for a label that training did not know."""
        for record in records:
            self.number_of(record["label"])
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return {"accuracy": metrics.accuracy(found, wanted), "macro_f1": metrics.macro_f1(found, wanted)}


def _told(tokenizer: Tokenizer, label: str) -> list[int]:
    """What is learned, token by token, to say a label."""
    return [*tokenizer.encode(f" {label}"), tokenizer.end_of_text_id]


def label_of(value: Any) -> str:
    """A label's name: a text, or an integer as text. Raises DataError, Unfit when it is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        name = str(value).strip()
        if not name:
            raise Unfit("without a label")
        return name
    if value is None:
        raise Unfit("without a label")
    raise DataError(f"a label must be a text or an integer, not {shown(value)}")


def head_logits(model: Model, hidden: np.ndarray) -> np.ndarray:
    """What the head says of hidden rows [N, D]: [N, O]. Raises ConfigError for a model without a head."""
    if "weight" not in model.head:
        raise ConfigError("this model has no head: fine-tune it for this task first")
    return np.asarray(hidden @ model.head["weight"].T + model.head["bias"], np.float32)
