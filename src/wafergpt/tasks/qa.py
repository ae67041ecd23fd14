"""Questions about a passage: the answer is a stretch of it (extractive), or written (generative)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require, require_finite
from wafergpt.errors import DataError, shown
from wafergpt.tasks import metrics, stretches
from wafergpt.tasks.calibration import softmax
from wafergpt.tasks.classification import head_logits
from wafergpt.tasks.shared_words import shared_rarity
from wafergpt.tasks.stretches import Choose
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
    asked_and_told,
    check_room,
    check_template,
    fill,
    squeezed,
    start,
    text_of,
    write_answers,
)
from wafergpt.tokenizer.bpe import Tokenizer


class Method(StrEnum):
    """How an answer is found."""

    EXTRACTIVE = "extractive"
    GENERATIVE = "generative"


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering:
    """Fields `question`, `context` and `answers` (SQuAD's form, a text, or a list of texts).

    The confidence is the probability of the stretch among all of the passage, or its expected F1 (extractive,
    see `choose`), or the geometric mean of the tokens' probabilities (generative).
    """

    method: Method = Method.EXTRACTIVE
    template: str = "{context}\nQuestion: {question}\nAnswer:"  # generative
    max_answer_tokens: int = 30  # extractive: longest stretch
    choose: Choose = Choose.LIKELIEST  # extractive: which stretch
    shared_words: float = 0.0  # extractive: what a nat of `shared_rarity` adds to a token's two logits

    name = "qa"
    asked = ("question", "context")
    answered = ("answers",)
    decoding = Decoding(max_new_tokens=48)

    def __post_init__(self) -> None:
        check_template(self.template, ["context", "question"])
        require(self.max_answer_tokens >= 1, f"max_answer_tokens = {self.max_answer_tokens} must be positive")
        require_finite("shared_words", self.shared_words, minimum=0.0, maximum=100.0)
        require(
            self.choose is Choose.LIKELIEST or self.method is Method.EXTRACTIVE,
            f"choose = {self.choose} is about stretches of a passage; it needs method=extractive",
        )
        require(
            self.shared_words == 0 or self.method is Method.EXTRACTIVE,
            f"shared_words = {self.shared_words} marks stretches of a passage; it needs method=extractive",
        )

    @property
    def objective(self) -> Objective:
        """A head learns stretches; else the answer is learned token by token."""
        return Objective.SPAN if self.method is Method.EXTRACTIVE else Objective.TOKENS

    def learn_from(self, records: Sequence[Record]) -> QuestionAnswering:
        """As it is."""
        return self

    def key(self, record: Record) -> str:
        """Passage and question."""
        return squeezed(f"{record.get('context') or ''} {record.get('question') or ''}")

    def target(self, record: Record) -> str:
        """The first answer."""
        return answers_of(record)[0][0]

    def question(self, record: Record) -> Record:
        """As it is."""
        return record

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """Question, passage and where the answer is in it; or passage, question and the answer.

        Of a passage that is longer than the window, the piece with most words around the answer is learned.
        """
        found = answers_of(record)
        if self.method is Method.GENERATIVE:
            told = [*tokenizer.encode(" " + found[0][0].strip()), tokenizer.end_of_text_id]
            return [asked_and_told(self._prompt(record, tokenizer), told, window)]
        context = text_of(record, "context")
        text, begin = next(((t, at) for t, at in found if at is not None), (found[0][0], None))
        if begin is None or context[begin : begin + len(text)] != text:
            begin = context.find(text)
        if begin < 0:
            raise Unfit("with an answer that is not in the passage")
        low = len(context[:begin].encode())
        high = low + len(text.encode()) - 1
        asked, passage = self._question(record, tokenizer), tokenizer.encode(context)
        ends = np.cumsum([len(tokenizer.token_bytes(i)) for i in passage])  # of each token, in bytes
        first, last = (int(np.searchsorted(ends, byte, side="right")) for byte in (low, high))
        pieces = _pieces(len(passage), window - len(asked))
        holding = [(at, end) for at, end in pieces if at <= first and last < end]
        if not holding:
            raise Unfit(TOO_LONG)
        at, end = max(holding, key=lambda piece: min(first - piece[0], piece[1] - last))  # words around it
        shift = len(asked) - at
        added = self._added(record, passage, tokenizer)[at:end]
        return [
            Encoded(
                ids=(*asked, *passage[at:end]),
                span=(first + shift, last + shift, len(asked)),
                added=tuple(added.tolist()) if self.shared_words else (),
            )
        ]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        values = {name: text_of(record, name).strip() for name in self.asked}
        return start(tokenizer, fill(self.template, values))

    def _question(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """It stands before the passage, since a token sees only what is before it."""
        return start(tokenizer, f"Question: {text_of(record, 'question').strip()}\n")

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """An answer to each question."""
        if self.method is Method.GENERATIVE:
            prompts = [self._prompt(record, model.tokenizer) for record in records]
            for prompt in prompts:
                check_room(prompt, model.window, "a passage with its question")
            return write_answers(model, [tuple(prompt) for prompt in prompts], decoding)
        return self._stretches(model, records)

    def _stretches(self, model: Model, records: Sequence[Record]) -> list[Answer]:
        """The likeliest stretch of each passage; one longer than the window is read in overlapping pieces."""
        rows: list[tuple[int, ...]] = []
        read: list[tuple[list[int], int, list[tuple[int, int]]]] = []  # passage, where it starts, its pieces
        for record in records:
            asked = self._question(record, model.tokenizer)
            check_room(asked, model.window, "a question")
            passage = model.tokenizer.encode(text_of(record, "context"))
            pieces = _pieces(len(passage), model.window - len(asked))
            rows += [(*asked, *passage[at:end]) for at, end in pieces]
            read.append((passage, len(asked), pieces))
        hidden = iter(model.hidden(rows, last_only=False))
        answers = []
        for record, (passage, first, pieces) in zip(records, read, strict=True):
            added = self._added(record, passage, model.tokenizer)[:, None]
            logits = [head_logits(model, next(hidden)[first:]) + added[at:end] for at, end in pieces]
            answers.append(self._stretch(model.tokenizer, passage, pieces, logits))
        return answers

    def _added(self, record: Record, passage: list[int], tokenizer: Tokenizer) -> NDArray[np.float32]:
        """[tokens of the passage]: what the question's words add, each token at its last character."""
        if self.shared_words == 0:
            return np.zeros(len(passage), np.float32)
        text = text_of(record, "context")
        char_ends = np.cumsum([len(char.encode()) for char in text])
        token_ends = np.cumsum([len(tokenizer.token_bytes(i)) for i in passage])
        last = np.searchsorted(char_ends, token_ends - 1, side="right")
        return self.shared_words * shared_rarity(text_of(record, "question"), text)[last]

    def _stretch(
        self,
        tokenizer: Tokenizer,
        ids: list[int],
        pieces: list[tuple[int, int]],
        logits: list[np.ndarray],
    ) -> Answer:
        """The stretch to answer with, within a piece; logits [T, 2] of being its first and its last token.

        Probabilities are those among the positions of all pieces.
        """
        p = softmax(np.concatenate(logits).T)  # [2, positions of all pieces]
        choose = stretches.expected_f1 if self.choose is Choose.EXPECTED_F1 else stretches.likeliest
        found = choose(p, pieces, self.max_answer_tokens)
        first, last = found.first, found.last
        before = tokenizer.decode(ids[:first])
        raw = tokenizer.decode(ids[first : last + 1])
        text = raw.strip()
        begin = len(before) + len(raw) - len(raw.lstrip())
        details = {"start": begin, "end": begin + len(text)}
        return Answer(text=text, confidence=found.confidence, details=details)

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """Exact match and F1, SQuAD's."""
        require(len(answers) == len(records) > 0, "there is nothing to score")
        wanted = [[text for text, _ in answers_of(record)] for record in records]
        pairs = list(zip((answer.text for answer in answers), wanted, strict=True))
        return {
            "exact_match": sum(metrics.exact_match(*pair) for pair in pairs) / len(pairs),
            "f1": sum(metrics.word_f1(*pair) for pair in pairs) / len(pairs),
        }


def _pieces(n: int, room: int) -> list[tuple[int, int]]:
    """(start, end) of stretches of `room` of `n` tokens; each begins by the middle of the one before."""
    if n <= room:
        return [(0, n)]
    if room < 1:
        return []
    step = max(1, room // 2)
    starts = [*range(0, n - room, step), n - room]
    return [(at, at + room) for at in starts]


def answers_of(record: Record) -> list[tuple[str, int | None]]:
    """(text, where it starts in the passage, if that is told) of every answer. Raises Unfit, DataError."""
    value: Any = record["answers"]
    found: list[tuple[str, int | None]]
    if value is None or isinstance(value, str):
        found = [(value or "", None)]
    elif isinstance(value, Mapping):
        texts = value.get("text") or []
        texts = [texts] if isinstance(texts, str) else list(texts)
        starts = value.get("answer_start")
        starts = [starts] if isinstance(starts, int) else list(starts or [])
        found = [(str(t), int(s)) for t, s in zip(texts, starts, strict=False)] or [
            (str(t), None) for t in texts
        ]
    elif isinstance(value, Sequence):
        found = [pair for item in value for pair in answers_of({"answers": item})]
    else:
        raise DataError(f"answers must be a text, a list or SQuAD's mapping, not {shown(value)}")
    found = [pair for pair in found if pair[0].strip()]
    if not found:
        raise Unfit(EMPTY)
    return found
