"""Translation: a source text, then its translation.

Two settings help a small model with what it has not learned: `copy`, where both texts are of one language,
and `memory`, where many sources are alike. Both are shares of each token's probability while a translation
is written (`pointing`); training is the same without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from wafergpt.config import require, require_finite
from wafergpt.tasks import metrics
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import Pointer
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
    """Fields `source` and `target`. The confidence is the geometric mean of the tokens' probabilities.

    With `memory` the pairs learned from are kept with the task: whoever has the model has them.
    """

    template: str = "{source}\nTranslation:"
    copy: float = 0.0  # share of the pointer at the source
    memory: float = 0.0  # share of the pointer at the target of the most similar pair, if that is the same
    sources: tuple[str, ...] = ()  # of the memory; learned
    targets: tuple[str, ...] = ()

    name = "translation"
    asked = ("source",)
    answered = ("target",)
    objective = Objective.TOKENS
    decoding = Decoding(max_new_tokens=256)

    def __post_init__(self) -> None:
        check_template(self.template, ["source"])
        for name in ("copy", "memory"):
            require_finite(name, getattr(self, name), minimum=0.0, maximum=1.0)
        require(
            self.copy + self.memory < 1,
            f"copy + memory = {self.copy + self.memory:g} leave nothing to the model; they must be below 1",
        )
        require(len(self.sources) == len(self.targets), "the memory's sources and targets are not as many")

    def learn_from(self, records: Sequence[Record]) -> Translation:
        """With the pairs, if it is to keep them."""
        if not self.memory:
            return self
        pairs = [(str(record.get("source") or ""), str(record.get("target") or "")) for record in records]
        sources, targets = zip(*pairs, strict=True) if pairs else ((), ())
        return replace(self, sources=sources, targets=targets)

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
        guides = [self._guide(record, model.tokenizer) for record in records]
        return write_answers(model, [tuple(prompt) for prompt in prompts], decoding, guides)

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.sources, self.targets)

    def _guide(self, record: Record, tokenizer: Tokenizer) -> Pointer | None:
        source = text_of(record, "source").strip()
        followed = [(source, self.copy)]
        if self.memory:
            target, likeness = self._memory.nearest(source)
            followed.append((target, self.memory * likeness))
        told = [(tokenizer.encode(" " + text.strip()), share) for text, share in followed if share > 0]
        return Pointer(told, tokenizer.end_of_text_id) if told else None

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """BLEU and chrF. Raises MissingDependencyError without sacrebleu."""
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return metrics.bleu_and_chrf(found, wanted, chinese=metrics.has_chinese(wanted))
