"""Translation: a source text, then its translation, if wanted with hints.

Hints (`pointing`) help a small model with what it has not learned: to copy from a source of the same
language, or from the translation of a source that is like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require, require_finite
from wafergpt.tasks import metrics
from wafergpt.tasks.consensus import most_agreed
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import Hinted, Places, hints_for
from wafergpt.tasks.task import (
    NO_HINT,
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

MOST_CANDIDATES = 64
SAMPLED_AT = 0.7  # temperature of the candidates that are drawn


class Hints(StrEnum):
    """Which text a translation follows."""

    NONE = "none"
    SOURCE = "source"
    MEMORY = "memory"  # the target of the most similar source that was learned from


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Fields `source` and `target`. The confidence is the geometric mean of the tokens' probabilities.

    With `candidates` above 1 that many are written, the first as asked for and the others drawn, and the most
    agreed is given; its confidence is its mean chrF with all of them (`consensus`). With `hints=memory` the
    pairs learned from are kept with the task: whoever has the model has them.
    """

    template: str = "{source}\nTranslation:"
    hints: Hints = Hints.NONE
    follow: float = 0.0  # nats that a hint has in use beyond those in training: the more, the closer
    candidates: int = 1  # translations that are written, to choose from
    sources: tuple[str, ...] = ()  # of the memory; learned
    targets: tuple[str, ...] = ()

    name = "translation"
    asked = ("source",)
    answered = ("target",)
    objective = Objective.TOKENS
    decoding = Decoding(max_new_tokens=256)

    def __post_init__(self) -> None:
        check_template(self.template, ["source"])
        require_finite("follow", self.follow, minimum=-100.0, maximum=100.0)
        require(
            self.follow == 0 or self.hints is not Hints.NONE,
            f"follow = {self.follow:g} is about hints; it needs hints=source or hints=memory",
        )
        require(
            1 <= self.candidates <= MOST_CANDIDATES,
            f"candidates = {self.candidates} must be 1 to {MOST_CANDIDATES}",
        )
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
        """Source, then the translation and an end of text, which count."""
        told = [*tokenizer.encode(" " + text_of(record, "target").strip()), tokenizer.end_of_text_id]
        prompt = self._prompt(record, tokenizer)
        example = asked_and_told(prompt, told, window)
        if self.hints is Hints.NONE:
            return [example]
        places = self._places(record, tokenizer, itself=False)
        hints = [NO_HINT] * len(told) if places is None else hints_for(told, places)
        return [replace(example, hints=(NO_HINT,) * len(prompt) + tuple(hints))]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        return start(tokenizer, fill(self.template, {"source": text_of(record, "source").strip()}))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """A translation of each source."""
        prompts = [self._prompt(record, model.tokenizer) for record in records]
        for prompt in prompts:
            check_room(prompt, model.window, "a source text")
        guides = [self._guide(record, model.tokenizer) for record in records]
        written = [
            write_answers(model, [tuple(prompt) for prompt in prompts], drawn, guides)
            for drawn in _decodings(decoding, self.candidates)
        ]
        return [_chosen(candidates) for candidates in zip(*written, strict=True)]

    def _guide(self, record: Record, tokenizer: Tokenizer) -> Hinted | None:
        places = None if self.hints is Hints.NONE else self._places(record, tokenizer)
        return None if places is None else Hinted(places, self.follow)

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.sources, self.targets)

    def _places(self, record: Record, tokenizer: Tokenizer, *, itself: bool = True) -> Places | None:
        """In the text that is followed, if there is one; `itself`: a memory may know this source."""
        followed = text_of(record, "source").strip()
        if self.hints is Hints.MEMORY:
            followed = self._memory.nearest(followed, itself=itself).strip()
            if not followed:
                return None
            chances = _chances(self.targets, tokenizer)
            ids = tokenizer.encode(f" {followed}")
            return Places(ids, tokenizer.end_of_text_id, lambda token_id: float(chances[token_id]))
        return Places(tokenizer.encode(f" {followed}"), tokenizer.end_of_text_id)

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """BLEU and chrF. Raises MissingDependencyError without sacrebleu."""
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return metrics.bleu_and_chrf(found, wanted, chinese=metrics.has_chinese(wanted))


def _decodings(decoding: Decoding, n: int) -> list[Decoding]:
    """As asked for, then n - 1 that draw."""
    drawn = replace(decoding, temperature=decoding.temperature or SAMPLED_AT, n_beams=1)
    seed = decoding.seed or 0
    return [decoding, *(replace(drawn, seed=seed + i) for i in range(1, n))]


def _chosen(candidates: Sequence[Answer]) -> Answer:
    if len(candidates) == 1:
        return candidates[0]
    best, agreed = most_agreed([answer.text for answer in candidates])
    return replace(candidates[best], confidence=agreed)


@lru_cache(maxsize=4)
def _chances(texts: tuple[str, ...], tokenizer: Tokenizer) -> NDArray[np.float64]:
    """[vocabulary]: the share of each token in the texts, each counted once more than it is there."""
    counts = np.ones(tokenizer.vocab_size)
    for text in texts:
        np.add.at(counts, [*tokenizer.encode(f" {text.strip()}"), tokenizer.end_of_text_id], 1.0)
    found: NDArray[np.float64] = counts / counts.sum()
    return found
