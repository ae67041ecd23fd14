"""Which passage answers a question: what each gains by it, in nats, as a language model counts them.

Two parts, added: what the question gains when the passage stands before it, the likelihood of a query (Ponte
and Croft 1998, A language modeling approach to information retrieval), which compares passages by the same
tokens; and, for each word that question and passage share, how surprising the model finds it in the passage
alone. The second is the likelihood ratio of "this word was taken from the passage" to "it was not", an even
chance before: a rare word is worth much, a common one nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.errors import shown
from wafergpt.tasks.chat import Chat
from wafergpt.tasks.shared_words import stem
from wafergpt.tasks.task import Ids, Model

N_READ = 200  # tokens of a passage that are read before the question
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Gains:
    """Nats of each passage, [n]."""

    asked: NDArray[np.float64]  # the question, with the passage before it
    shared: NDArray[np.float64]  # words that it shares with the question

    @property
    def total(self) -> NDArray[np.float64]:
        """What to rank by."""
        return self.asked + self.shared


class Ranker:
    """A chat's model and the passages that it may be asked for, read once as answers to nothing."""

    def __init__(self, task: Chat, model: Model, passages: Sequence[str]) -> None:
        """Raises ConfigError when there is no passage, or an empty one."""
        require(len(passages) > 0, "there is no passage to rank")
        require(all(text.strip() for text in passages), "a passage to rank must not be empty")
        self._task, self._model = task, model
        self._bare = (model.tokenizer.end_of_text_id, *model.tokenizer.encode(task.assistant))
        self._read: dict[str, tuple[Ids, dict[str, float]]] = {}  # its ids, how surprising its words are
        texts = list(dict.fromkeys(passages))
        told = [tuple(model.tokenizer.encode(f" {text.strip()}")) for text in texts]
        rows = [((*self._bare, *ids)[: model.window], len(self._bare)) for ids in told]
        for text, ids, nats in zip(texts, told, model.log_probabilities(rows), strict=True):
            self._read[text] = (ids, self._surprises(ids, nats))

    def gains(self, question: str, passages: Sequence[str]) -> Gains:
        """Of each of the passages, which were given before.

        A passage's first `N_READ` tokens stand before the question, fewer where the window is short; a system
        message does not.
        Raises ConfigError for another passage, or a question longer than the window.
        """
        unknown = next((text for text in passages if text not in self._read), None)
        require(unknown is None, f"not among the passages that were read: {shown(unknown)}")
        bare = self._bare
        said = tuple(self._model.tokenizer.encode(f"\n{self._task.user} {question.strip()}"))
        room = self._model.window - len(bare) - len(said)
        require(
            room > 0,
            f"a question has {len(bare) + len(said)} tokens with its prompt; {self._model.window} are read",
        )
        heads = [bare, *((*bare, *self._read[text][0][: min(room, N_READ)]) for text in passages)]
        rows = [((*head, *said), len(head)) for head in heads]
        alone, *after = (sum(nats) for nats in self._model.log_probabilities(rows))
        asked = {stem(word) for word in _WORD.findall(question)}
        shared = [
            sum(
                float(np.logaddexp(0.0, surprise - np.log(len(asked))))
                for word, surprise in self._read[text][1].items()
                if word in asked
            )
            for text in passages
        ]
        return Gains(np.array(after) - alone, np.array(shared))

    def _surprises(self, ids: Ids, nats: Sequence[float]) -> dict[str, float]:
        """Stem -> nats of its first word in the passage: those of the tokens that end in it."""
        pieces = [self._model.tokenizer.token_bytes(i) for i in ids[: len(nats)]]
        text = b"".join(pieces)
        ends = np.cumsum([len(piece) for piece in pieces])
        found: dict[str, float] = {}
        said = text.decode(errors="replace")
        places = np.cumsum([0, *(len(char.encode()) for char in said)])
        for match in _WORD.finditer(said):
            low, high = places[match.start()], places[match.end()]
            first, last = np.searchsorted(ends, [low, high - 1], side="right")
            found.setdefault(stem(match[0]), -float(sum(nats[first : last + 1])))
        return found
