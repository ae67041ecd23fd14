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

    With `candidates` above 1 that many translations are written and the most agreed is given, its confidence
    the mean chrF with all of them: the first as asked for, each other one after the next similar pair
    (`hints=memory`) or sampled. With `hints=memory` the pairs learned from are kept with the task: whoever
    has the model has them.
    """

    template: str = "{source}\nTranslation:"
    hints: Hints = Hints.NONE
    follow: float = 0.0  # nats that a hint has in use beyond those in training: the more, the closer
    candidates: int = 1  # translations written, to choose from
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
        followed = self._followed(record, 1, itself=False)
        hints = hints_for(told, self._places(followed[0], tokenizer)) if followed else [NO_HINT] * len(told)
        return [replace(example, hints=(NO_HINT,) * len(prompt) + tuple(hints))]

    def _prompt(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        return start(tokenizer, fill(self.template, {"source": text_of(record, "source").strip()}))

    def answer(self, model: Model, records: Sequence[Record], decoding: Decoding) -> list[Answer]:
        """A translation of each source."""
        prompts = [self._prompt(record, model.tokenizer) for record in records]
        for prompt in prompts:
            check_room(prompt, model.window, "a source text")
        followed = [self._followed(record, self.candidates) for record in records]
        written = []
        for number in range(self.candidates):
            guides = [self._guide(texts, number, model.tokenizer) for texts in followed]
            drawn = decoding if number == 0 or self.hints is Hints.MEMORY else _sampled(decoding, number)
            written.append(write_answers(model, [tuple(prompt) for prompt in prompts], drawn, guides))
        return [_chosen(candidates) for candidates in zip(*written, strict=True)]

    def _guide(self, followed: Sequence[str], number: int, tokenizer: Tokenizer) -> Hinted | None:
        """Of candidate `number`; where fewer pairs are similar, again of the last of them."""
        if not followed:
            return None
        return Hinted(self._places(followed[min(number, len(followed) - 1)], tokenizer), self.follow)

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.sources, self.targets)

    def _followed(self, record: Record, n: int, *, itself: bool = True) -> list[str]:
        """Texts to follow, best first, if there are any; `itself`: a memory may know this source."""
        if self.hints is Hints.NONE:
            return []
        source = text_of(record, "source").strip()
        if self.hints is Hints.SOURCE:
            return [source]
        return [text for text in self._memory.nearest(source, n, itself=itself) if text.strip()]

    def _places(self, followed: str, tokenizer: Tokenizer) -> Places:
        ids = tokenizer.encode(f" {followed.strip()}")
        if self.hints is Hints.SOURCE:
            return Places(ids, tokenizer.end_of_text_id)
        chances = _chances(self.targets, tokenizer)
        return Places(ids, tokenizer.end_of_text_id, lambda token_id: float(chances[token_id]))

    def score(self, answers: Sequence[Answer], records: Sequence[Record]) -> dict[str, float]:
        """BLEU and chrF. Raises MissingDependencyError without sacrebleu."""
        found, wanted = [answer.text for answer in answers], [self.target(record) for record in records]
        return metrics.bleu_and_chrf(found, wanted, chinese=metrics.has_chinese(wanted))


def _sampled(decoding: Decoding, number: int) -> Decoding:
    """For a candidate that nothing else would make another one."""
    return replace(
        decoding,
        temperature=decoding.temperature or SAMPLED_AT,
        seed=(decoding.seed or 0) + number,
        n_beams=1,
    )


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
