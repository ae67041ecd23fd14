"""A task: examples to tokens and loss mask, how to answer, how to score (no torch).

One object serves training, evaluation and use, so that a prompt is the same in all three. A task is a frozen
dataclass of settings; `registry` turns it into `task.json` and back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.tokenizer.bpe import Tokenizer

Record = Mapping[str, Any]  # one example by the task's own field names
Ids = tuple[int, ...]
Hint = tuple[int, float]  # a token id and the nats that are added to its logit
# Other logits [V] instead of the model's, given the new tokens so far.
Guide = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]


class Objective(StrEnum):
    """What training minimises."""

    TOKENS = "tokens"  # nats of the tokens that count
    LABEL = "label"  # nats of the label, from a head over the last token
    SPAN = "span"  # nats of the answer's first and last token in the passage, from a head over each


class Unfit(Exception):  # noqa: N818 (not an error: the example is left out and counted)
    """An example that cannot be learned from; `reason` is what the report counts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


NO_HINT: Hint = (0, 0.0)
EMPTY = "empty"
TOO_LONG = "longer than the window"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One example as tokens, at most one more than the window."""

    ids: Ids
    counted: tuple[bool, ...] = ()  # TOKENS: whether ids[i], given all before it, counts; never the first
    hints: tuple[Hint, ...] = ()  # TOKENS: for ids[i], from all before it; (): none
    label: int = -1  # LABEL: which
    span: tuple[int, int, int] = (-1, -1, -1)  # SPAN: first and last of the answer, first of the passage
    added: tuple[float, ...] = ()  # SPAN: to both logits of each token of the passage; (): nothing

    @property
    def n_positions(self) -> int:
        """Positions the model reads: the last token of TOKENS is only predicted."""
        return len(self.ids) - 1 if self.counted else len(self.ids)

    @property
    def n_counted(self) -> int:
        """Things to learn: tokens, or one."""
        return sum(self.counted) if self.counted else 1


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a task has its answers written."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0  # taken off a logit for each time its token was written
    seed: int | None = None
    n_beams: int = 1
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote."""

    text: str
    n_tokens: int
    log_probability: float  # mean over its tokens, nats
    window_full: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a task says; `confidence` in 0..1 is explained by the task."""

    text: str
    confidence: float
    details: Mapping[str, Any] = field(default_factory=dict)  # plain data, e.g. every label's probability


class Model(Protocol):
    """What a task asks of a running model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        ...

    @property
    def window(self) -> int:
        """Most positions it can read."""
        ...

    @property
    def head(self) -> Mapping[str, NDArray[np.float32]]:
        """`weight` [O, D] and `bias` [O] of the task's head; empty for a task without one."""
        ...

    def write(
        self, prompts: Sequence[Ids], decoding: Decoding, guides: Sequence[Guide | None] = ()
    ) -> list[Written]:
        """A continuation of each prompt, with its guide if there are any."""
        ...

    def log_probabilities(
        self, rows: Sequence[tuple[Ids, int]], guides: Sequence[Guide | None] = ()
    ) -> list[list[float]]:
        """For each (ids, n given): nats of the tokens that are not given, each by all before it."""
        ...

    def hidden(self, rows: Sequence[Ids], *, last_only: bool) -> list[NDArray[np.float32]]:
        """Last hidden states of each row, [1, D] or [T, D]."""
        ...


class Task(Protocol):
    """See the module. `fields` are the record's field names; the first ones are asked, the rest answered."""

    @property
    def name(self) -> str:
        """`classification`, `translation`, ..."""
        ...

    @property
    def asked(self) -> tuple[str, ...]:
        """Fields of a record that a question needs."""
        ...

    @property
    def answered(self) -> tuple[str, ...]:
        """Fields that training and scoring need besides."""
        ...

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        ...

    @property
    def decoding(self) -> Decoding:
        """How answers are written unless told otherwise."""
        ...

    def learn_from(self, records: Sequence[Record]) -> Self:
        """The task with what its training records decide, such as the labels. Raises DataError."""
        ...

    def key(self, record: Record) -> str:
        """What is asked, as text: equal for duplicates."""
        ...

    def target(self, record: Record) -> str:
        """What is to be answered, as text."""
        ...

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """The example as tokens; several for a long text. Raises Unfit, DataError."""
        ...

    def question(self, record: Record) -> Record:
        """A record of a test without what it tells: what `answer` is given to be scored."""
        ...

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """Answers to what the records ask. Raises ConfigError when one does not fit the window."""
        ...

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """Measures of the answers by name. Raises DataError."""
        ...


_PLACE = re.compile(r"\{(\w+)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` replaced by `values[name]`; braces within the values mean nothing."""
    return _PLACE.sub(lambda match: values[match[1]], template)


def check_template(template: str, names: Sequence[str]) -> None:
    """Raise ConfigError unless `template` has each of `{names}` and no other place."""
    found = set(_PLACE.findall(template))
    for name in names:
        require(name in found, f"the template {template!r} has no place {{{name}}}")
    for name in sorted(found - set(names)):
        require(False, f"the template {template!r} has a place {{{name}}} that this task does not know")


def start(tokenizer: Tokenizer, text: str) -> list[int]:
    """A prompt's ids: the end of text that comes before every document in pre-training, then the text."""
    return [tokenizer.end_of_text_id, *tokenizer.encode(text)]


def asked_and_told(prompt: Sequence[int], told: Sequence[int], window: int) -> Encoded:
    """A prompt and what is to be learned after it. Raises Unfit."""
    if len(prompt) + len(told) > window + 1:
        raise Unfit(TOO_LONG)
    return Encoded(ids=(*prompt, *told), counted=(False,) * len(prompt) + (True,) * len(told))


def check_room(prompt: Sequence[int], window: int, what: str) -> None:
    """Raise ConfigError unless the prompt leaves room for an answer."""
    require(
        len(prompt) < window,
        f"{what} has {len(prompt)} tokens with its prompt, which leaves no room in the context window of"
        f" {window}; shorten it",
    )


def write_answers(
    model: Model, prompts: Sequence[Ids], decoding: Decoding, guides: Sequence[Guide | None] = ()
) -> list[Answer]:
    """Answers in the model's own words; the confidence is the geometric mean of its tokens' probabilities."""
    return [answer_of(written) for written in model.write(prompts, decoding, guides)]


def answer_of(written: Written) -> Answer:
    """What was written, as an answer."""
    return Answer(
        text=written.text.strip(),
        confidence=float(np.exp(written.log_probability)),
        details={"window_full": True} if written.window_full else {},
    )


def text_of(record: Record, name: str) -> str:
    """The text of a field. Raises Unfit when it is empty."""
    text = str(record.get(name) or "")
    if not text.strip():
        raise Unfit(EMPTY)
    return text


def squeezed(text: str) -> str:
    """Lower case, runs of white space as one space: what makes two texts the same question."""
    return " ".join(text.casefold().split())
