"""Chat: roles, several turns, loss on the assistant's answers only. The template suits a base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wafergpt.config import require
from wafergpt.errors import DataError, did_you_mean, shown
from wafergpt.tasks import metrics
from wafergpt.tasks.task import (
    EMPTY,
    TOO_LONG,
    Answer,
    Decoding,
    Encoded,
    Model,
    Objective,
    Record,
    Unfit,
    check_room,
    squeezed,
    write_answers,
)
from wafergpt.tokenizer.bpe import Tokenizer

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_OTHER_NAMES = {"human": USER, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT, "customer": USER,
                "agent": ASSISTANT}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Field `messages`: a list of {role, content}, or of {from, value}.

    An end of text, the system's words, then turns: `User: ...` line, `Assistant: ...` and an end of text. The
    confidence is the geometric mean of the tokens' probabilities.
    """

    user: str = "User:"
    assistant: str = "Assistant:"
    system: str = ""  # said before a conversation that brings no system message of its own

    name = "chat"
    asked = ("messages",)
    answered = ()
    objective = Objective.TOKENS
    decoding = Decoding(max_new_tokens=256)

    def __post_init__(self) -> None:
        require(bool(self.user.strip() and self.assistant.strip()), "user and assistant must not be empty")
        require(self.user != self.assistant, "user and assistant must differ")

    def learn_from(self, records: Sequence[Record]) -> Chat:
        """As it is."""
        return self

    def key(self, record: Record) -> str:
        """All before the last answer."""
        return squeezed(" ".join(f"{m.role} {m.content}" for m in _asked(messages_of(record))))

    def target(self, record: Record) -> str:
        """The last answer; empty when the user has the last word."""
        last = messages_of(record)[-1]
        return last.content if last.role == ASSISTANT else ""

    def question(self, record: Record) -> Record:
        """As it is."""
        return record

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """The conversation; answers and their ends count. Raises Unfit without an answer."""
        ids, counted = self._tokens(messages_of(record), tokenizer)
        if not any(counted):
            raise Unfit("without an answer to learn from")
        last = max(i for i, is_counted in enumerate(counted) if is_counted)
        ids, counted = ids[: last + 1], counted[: last + 1]  # nothing is learned after the last answer
        if len(ids) > window + 1:
            raise Unfit(TOO_LONG)
        return [Encoded(ids=tuple(ids), counted=tuple(counted))]

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """What the assistant's next answer follows."""
        ids, _ = self._tokens(messages, tokenizer)
        return ids + tokenizer.encode(self.assistant)

    def _tokens(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Each piece is encoded on its own, so that a prompt has the same tokens in training and in use."""
        ids, counted = [tokenizer.end_of_text_id], [False]

        def add(text: str, *, counts: bool = False) -> None:
            piece = tokenizer.encode(text) + ([tokenizer.end_of_text_id] if counts else [])
            ids.extend(piece)
            counted.extend([counts] * len(piece))

        if self.system and messages[0].role != SYSTEM:
            add(f"{self.system}\n")
        for message in messages:
            if message.role == ASSISTANT:
                add(self.assistant)
                add(f" {message.content.strip()}", counts=True)
            else:
                said = message.content.strip()
                add(f"{said}\n" if message.role == SYSTEM else f"{self.user} {said}\n")
        return ids, counted

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """The assistant's next words in each conversation; a last answer in it is left out first."""
        prompts = []
        for record in records:
            prompt = self.prompt(_asked(messages_of(record)), model.tokenizer)
            check_room(prompt, model.window, "a conversation")
            prompts.append(tuple(prompt))
        return write_answers(model, prompts, decoding)

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """Words shared with the last answer (F1), and how varied the answers are."""
        require(len(answers) == len(records) > 0, "there is nothing to score")
        found = [answer.text for answer in answers]
        f1 = [metrics.word_f1(text, [self.target(r)]) for text, r in zip(found, records, strict=True)]
        return {"f1": sum(f1) / len(f1), "distinct_2": metrics.distinct_n(found, 2)}


def messages_of(record: Record) -> list[Message]:
    """The conversation of a record. Raises Unfit when it is empty, DataError for what is none."""
    value: Any = record["messages"]
    if isinstance(value, str):
        value = [{"role": USER, "content": value}]
    if not isinstance(value, Sequence) or not all(isinstance(item, Mapping) for item in value):
        raise DataError(f"messages must be a list of {{role, content}}, not {shown(value)}")
    found = [_message(item) for item in value]
    if not found or not any(message.content.strip() for message in found):
        raise Unfit(EMPTY)
    return found


def _message(item: Mapping[str, Any]) -> Message:
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"a message must have the texts 'role' and 'content', not {shown(dict(item))}")
    name = _OTHER_NAMES.get(role.lower(), role.lower())
    if name not in (SYSTEM, USER, ASSISTANT):
        known = [SYSTEM, USER, ASSISTANT]
        raise DataError(f"the role {shown(role)} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    return Message(role=name, content=content)


def _asked(messages: list[Message]) -> list[Message]:
    """Without a last answer."""
    return messages[:-1] if messages[-1].role == ASSISTANT and len(messages) > 1 else messages
