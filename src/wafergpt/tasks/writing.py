"""Writing: go on with a text, rewrite it in a style, give it a title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from wafergpt.config import require
from wafergpt.tasks import metrics
from wafergpt.tasks.task import (
    Answer,
    Decoding,
    Encoded,
    Model,
    Objective,
    Record,
    asked_and_told,
    check_room,
    fill,
    squeezed,
    start,
    text_of,
    write_answers,
)
from wafergpt.tokenizer.bpe import Tokenizer


class Kind(StrEnum):
    """What is written."""

    CONTINUE = "continue"
    REWRITE = "rewrite"
    TITLE = "title"


_TEMPLATES = {
    Kind.CONTINUE: "{text}",
    Kind.REWRITE: "{text}\nIn the style of {style}:",
    Kind.TITLE: "{text}\nTitle:",
}
_SHARE_GIVEN, _MOST_WORDS_GIVEN = 0.5, 60  # of a text that is to be continued, where it is scored


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Field `text`; `target` and, if it changes, `style` to rewrite; `title` to give titles.

    To go on with a text every token counts, and a long one becomes several examples. The confidence is the
    geometric mean of the tokens' probabilities.
    """

    kind: Kind = Kind.CONTINUE
    style: str = "the author"  # of records that name none

    name = "writing"
    asked = ("text",)
    objective = Objective.TOKENS

    def __post_init__(self) -> None:
        require(bool(self.style.strip()), "style must not be empty")

    @property
    def answered(self) -> tuple[str, ...]:
        """What must be there to learn from."""
        return {Kind.CONTINUE: (), Kind.REWRITE: ("target",), Kind.TITLE: ("title",)}[self.kind]

    @property
    def decoding(self) -> Decoding:
        """Free writing is drawn, the rest is the likeliest."""
        if self.kind is Kind.CONTINUE:
            return Decoding(max_new_tokens=200, temperature=0.8, top_p=0.95)
        return Decoding(max_new_tokens=256 if self.kind is Kind.REWRITE else 32)

    def learn_from(self, records: Sequence[Record]) -> Writing:
        """As it is."""
        return self

    def key(self, record: Record) -> str:
        """The text, and the style if it names one."""
        return squeezed(f"{record.get('style') or ''} {record.get('text') or ''}")

    def target(self, record: Record) -> str:
        """What is to be written; of a text to be continued its second half."""
        return str(record[self.answered[0]]) if self.answered else _halves(str(record["text"]))[1]

    def question(self, record: Record) -> Record:
        """The record to score with: of a text to be continued its first half is given."""
        return record if self.answered else {**record, "text": _halves(str(record["text"]))[0]}

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """The text in stretches that fill the window, or text and what is to be written."""
        if self.kind is not Kind.CONTINUE:
            told = tokenizer.encode(" " + text_of(record, self.answered[0]).strip())
            return [
                asked_and_told(self._prompt(record, tokenizer), [*told, tokenizer.end_of_text_id], window)
            ]
        ids = [*start(tokenizer, text_of(record, "text")), tokenizer.end_of_text_id]
        # Neighbours share one token, so that each is predicted once.
        rows = [ids[at : at + window + 1] for at in range(0, len(ids) - 1, window)]
        return [Encoded(ids=tuple(row), counted=(False,) + (True,) * (len(row) - 1)) for row in rows]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        style = str(record.get("style") or self.style)
        text = text_of(record, "text")
        text = text if self.kind is Kind.CONTINUE else text.strip()
        return start(tokenizer, fill(_TEMPLATES[self.kind], {"text": text, "style": style}))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """What is written for each text."""
        prompts = [self._prompt(record, model.tokenizer) for record in records]
        for prompt in prompts:
            check_room(prompt, model.window, "a text")
        return write_answers(model, [tuple(prompt) for prompt in prompts], decoding)

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """How varied the words are; with a known target, words shared with it (F1)."""
        require(len(answers) == len(records) > 0, "there is nothing to score")
        found = [answer.text for answer in answers]
        scores = {f"distinct_{n}": metrics.distinct_n(found, n) for n in (1, 2)}
        if self.answered:
            f1 = [metrics.word_f1(text, [self.target(r)]) for text, r in zip(found, records, strict=True)]
            scores["f1"] = sum(f1) / len(f1)
        return scores


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    n = max(1, min(int(len(words) * _SHARE_GIVEN), _MOST_WORDS_GIVEN))
    return " ".join(words[:n]), " ".join(words[n:])
