"""A byte-level tokenizer and a model that answers by rule: what the tasks are tested with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import models

from wafergpt.tasks.task import Decoding, Guide, Ids, Written
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer, byte_alphabet, byte_level


def byte_tokenizer() -> Tokenizer:
    """One id a byte, 256 the end of text: tokens can be counted by eye."""
    vocabulary = byte_alphabet() | {END_OF_TEXT: 256}
    return Tokenizer(byte_level(models.BPE(vocab=vocabulary, merges=[])))


class RuleModel:
    """Says what `says` makes of the prompt's text; hidden states and likelihoods by rule."""

    def __init__(
        self,
        says: Callable[[str], str] = lambda prompt: prompt,
        *,
        window: int = 256,
        likely: Callable[[str], float] = lambda text: -1.0,
        states: Callable[[Ids], NDArray[np.float32]] | None = None,
        head: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.tokenizer = byte_tokenizer()
        self.window = window
        self.head = head or {}
        self._says, self._likely, self._states = says, likely, states

    def write(
        self, prompts: Sequence[Ids], decoding: Decoding, guides: Sequence[Guide | None] = ()
    ) -> list[Written]:
        texts = [self._says(self.tokenizer.decode(ids[1:])) for ids in prompts]
        return [Written(text=text, n_tokens=len(text), log_probability=-0.5) for text in texts]

    def log_probabilities(
        self, rows: Sequence[tuple[Ids, int]], guides: Sequence[Guide | None] = ()
    ) -> list[list[float]]:
        """`likely` of the text that is not given, on its first token."""
        found = []
        for ids, n_given in rows:
            told = self.tokenizer.decode(ids[n_given:-1])
            found.append([self._likely(told), *[0.0] * (len(ids) - n_given - 1)])
        return found

    def hidden(self, rows: Sequence[Ids], *, last_only: bool) -> list[NDArray[np.float32]]:
        assert self._states is not None
        return [self._states(ids)[-1:] if last_only else self._states(ids) for ids in rows]
