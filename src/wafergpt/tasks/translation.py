"""Translation: a source text, then its translation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    check_template,
    fill,
    squeezed,
    start,
    text_of,
    write_answers,
)
from wafergpt.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Fields `source` and `target`. The confidence is the geometric mean of the tokens' probabilities."""

    template: str = "{source}\nTranslation:"

    name = "translation"
    asked = ("source",)
    answered = ("target",)
    objective = Objective.TOKENS
    decoding = Decoding(max_new_tokens=256)

    def __post_init__(self) -> None:
        check_template(self.template, ["source"])

    def learn_from(self, records: Sequence[Record]) -> Translation:
        """As it is."""
        return self

    def key(self, record: Record) -> str:
        """The source."""
        return squeezed(str(record.get("source") or ""))

    def target(self, record: Record) -> str:
        """The translation."""
        return str(record["target"])

    def question(self, record: Record) -> Record:
        """As it is."""
        return record

    def encode(self, record: Record, tokenizer: Tokenizer, window: int) -> list[Encoded]:
        """Source, then the translation and an end of text, which count."""
        told = tokenizer.encode(" " + text_of(record, "target").strip())
        return [asked_and_told(self._prompt(record, tokenizer), [*told, tokenizer.end_of_text_id], window)]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        return start(tokenizer, fill(self.template, {"source": text_of(record, "source").strip()}))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """A translation of each source."""
        prompts = [self._prompt(record, model.tokenizer) for record in records]
        for prompt in prompts:
            check_room(prompt, model.window, "a source text")
        return write_answers(model, [tuple(prompt) for prompt in prompts], decoding)

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """BLEU and chrF. Raises MissingDependencyError without sacrebleu."""
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return metrics.bleu_and_chrf(found, wanted, chinese=metrics.has_chinese(wanted))
