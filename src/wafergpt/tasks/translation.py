"""Translation: a source text, then its translation, if wanted with hints.

Hints (`pointing`) help a small model with what it has not learned: to copy from a source of the same
language, or from the translation of a source that is like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from wafergpt.config import require
from wafergpt.tasks import metrics
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import HintFirst, Places, with_hints
from wafergpt.tasks.task import (
    Answer,
    Decoding,
    Encoded,
    Model,
    Objective,
    Record,
    Written,
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


class Hints(StrEnum):
    """Which text a translation follows."""

    NONE = "none"
    SOURCE = "source"
    MEMORY = "memory"  # the target of the most similar source that was learned from


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Fields `source` and `target`. The confidence is the geometric mean of the tokens' probabilities.

    With `hints=memory` the pairs learned from are kept with the task: whoever has the model has them.
    """

    template: str = "{source}\nTranslation:"
    hints: Hints = Hints.NONE
    sources: tuple[str, ...] = ()  # of the memory; learned
    targets: tuple[str, ...] = ()

    name = "translation"
    asked = ("source",)
    answered = ("target",)
    objective = Objective.TOKENS
    decoding = Decoding(max_new_tokens=256)

    def __post_init__(self) -> None:
        check_template(self.template, ["source"])
        require(len(self.sources) == len(self.targets), "the memory's sources and targets are not as many")

    def learn_from(self, records: Sequence[Record]) -> Translation:
        """With the pairs, if it is to remember them."""
        if self.hints is not Hints.MEMORY:
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
        """Source, then the translation and an end of text, which count; hints do not."""
        told = [*tokenizer.encode(" " + text_of(record, "target").strip()), tokenizer.end_of_text_id]
        prompt = self._prompt(record, tokenizer)
        if self.hints is Hints.NONE:
            return [asked_and_told(prompt, told, window)]
        both = asked_and_told(prompt, with_hints(told, self._places(record, tokenizer, itself=False)), window)
        hinted = (i < len(prompt) or (i - len(prompt)) % 2 == 0 for i in range(len(both.ids)))
        return [replace(both, counted=tuple(not is_hint for is_hint in hinted))]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        return start(tokenizer, fill(self.template, {"source": text_of(record, "source").strip()}))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """A translation of each source."""
        prompts = [self._prompt(record, model.tokenizer) for record in records]
        for prompt in prompts:
            check_room(prompt, model.window, "a source text")
        if self.hints is Hints.NONE:
            return write_answers(model, [tuple(prompt) for prompt in prompts], decoding)
        require(decoding.n_beams == 1, f"n_beams = {decoding.n_beams}: hints are not for beams")
        require(
            decoding.frequency_penalty == 0,
            f"frequency_penalty = {decoding.frequency_penalty:g} would fall on hints; this model takes none",
        )
        require(not decoding.stop, "stop texts would be looked for among hints; this model takes none")
        guides = [HintFirst(self._places(record, model.tokenizer)) for record in records]
        twice = replace(decoding, max_new_tokens=2 * decoding.max_new_tokens)
        written = model.write([tuple(prompt) for prompt in prompts], twice, guides)
        return [_without_hints(each, model.tokenizer) for each in written]

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.sources, self.targets)

    def _places(self, record: Record, tokenizer: Tokenizer, *, itself: bool = True) -> Places:
        """In the text that is followed; `itself`: a memory may know this source."""
        followed = text_of(record, "source").strip()
        if self.hints is Hints.MEMORY:
            followed = self._memory.nearest(followed, itself=itself).strip()
        return Places(tokenizer.encode(f" {followed}"), tokenizer.encode("\n")[0])

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """BLEU and chrF. Raises MissingDependencyError without sacrebleu."""
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return metrics.bleu_and_chrf(found, wanted, chinese=metrics.has_chinese(wanted))


def _without_hints(written: Written, tokenizer: Tokenizer) -> Answer:
    """Every second token."""
    ids = [i for i in written.token_ids[1::2] if i != tokenizer.end_of_text_id]
    nats = written.log_probabilities[1::2]
    return Answer(
        text=tokenizer.decode(ids).strip(),
        confidence=float(np.exp(np.mean(nats))) if nats else 0.0,
        details={"window_full": True} if written.window_full else {},
    )
