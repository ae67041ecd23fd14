"""Hints: what comes next if the text that is being written follows another one; the model decides.

A hidden Markov model of places, as in HMM alignment (Vogel et al. 1996, HMM-based word alignment in
statistical translation) but within one language: a place j of the followed text says "its token j comes
next", and what is written moves the places. The likeliest token is the hint, and its logit is raised, in
training as in use: the model learns when to take a hint, not where it stands. Pointer networks (See et al.
2017, Get to the point) learn both, and need more text for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.tasks.task import Hint

CHANCE = 1 / 700  # of a token that nothing is known of; only its order of magnitude matters

# How a writer moves. Only the order of magnitude of each matters: a text that is copied is found again.
COPIES = 0.6  # the token of the place is written as it stands
OTHER = 1e-3  # any one token that is written instead of it, or by a writer who is lost
AFTER_COPY = (0.0, 0.9)  # stay, go on; what is left skips 1, 2, ... tokens, each half as likely
AFTER_OTHER = (0.3, 0.4)
LONGEST_SKIP = 8
LOSES = 0.05  # a writer leaves the text ...
FINDS = 0.05  # ... and comes back to it, anywhere


class Places:
    """Where in `ids` the writer is: a probability for each place, the last of them the end of the text.

    What is missing from 1 is that the writer follows something else.
    """

    def __init__(
        self, ids: Sequence[int], end_id: int, chance: Callable[[int], float] = lambda token_id: CHANCE
    ) -> None:
        """`end_id` is the hint after the last token; `chance`: of a token id in texts of this kind."""
        self._chance = chance
        self.ids = np.array([*ids, end_id], np.int64)
        n = len(self.ids)
        self._after_copy, self._after_other = _moves(n, *AFTER_COPY), _moves(n, *AFTER_OTHER)
        self._tokens, self._which = np.unique(self.ids, return_inverse=True)
        self.restart()

    def restart(self) -> None:
        """Back to before the first token."""
        self.at = np.eye(1, len(self.ids), dtype=np.float64)[0]

    def read(self, token_id: int) -> None:
        """Go on by one token that was written."""
        lost = (1.0 - self.at.sum()) * OTHER
        copied = self.at * COPIES * (self.ids == token_id)
        other = self.at * ((1 - COPIES) * OTHER)
        at = copied @ self._after_copy + other @ self._after_other
        total = lost + at.sum()
        self.at = ((1 - LOSES) * at + FINDS * lost / len(at)) / total

    @property
    def hint(self) -> Hint:
        """The likeliest next token, among equals the lowest id, and what its logit gains.

        ln(1 + p / (1 - p) / c), where p is how likely it is copied and c what chance it has anyway: what
        makes a model that gives it c the mixture of that model and the copy.
        """
        p = COPIES * np.bincount(self._which, weights=self.at)
        best = int(p.argmax())
        token_id = int(self._tokens[best])
        return token_id, math.log1p(p[best] / (1.0 - p[best]) / self._chance(token_id))


def hints_for(told: Sequence[int], places: Places) -> list[Hint]:
    """The hint before each of the tokens, as they are written one after the other."""
    found = []
    for token_id in told:
        found.append(places.hint)
        places.read(token_id)
    return found


class Hinted:
    """A guide: the hint's logit is raised. Asked for another beginning than the last one, it reads anew."""

    def __init__(self, places: Places, more: float = 0.0) -> None:
        """`places` before the first token; `more` nats are added to each hint."""
        self._places, self._more = places, more
        self._read: list[int] = []

    def __call__(self, new_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits [V] with the hint after `new_ids`; not changed in place."""
        written = list(new_ids)
        if written[: len(self._read)] != self._read:
            self._places.restart()
            self._read = []
        for token_id in written[len(self._read) :]:
            self._places.read(token_id)
        self._read = written
        token_id, nats = self._places.hint
        return raised(logits, (token_id, nats + self._more))


class Told:
    """A guide of hints that are known before: hints[i] for the token after i new ones."""

    def __init__(self, hints: Sequence[Hint]) -> None:
        self._hints = hints

    def __call__(self, new_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits [V] with the hint; not changed in place."""
        return raised(logits, self._hints[len(new_ids)])


def raised(logits: NDArray[np.float32], hint: Hint) -> NDArray[np.float32]:
    """A copy of logits [V] with the hint's raised."""
    token_id, nats = hint
    changed = logits.copy()
    changed[token_id] += np.float32(nats)
    return changed


def _moves(n: int, stay: float, on: float) -> NDArray[np.float64]:
    """[from, to], rows of sum 1; what would go past the end goes to the end."""
    skips = 0.5 ** np.arange(1, LONGEST_SKIP + 1)
    steps = np.concatenate([[stay, on], (1 - stay - on) * skips / skips.sum()])
    distance = np.arange(n)[None, :] - np.arange(n)[:, None]
    near = (distance >= 0) & (distance < len(steps))
    found = np.where(near, steps[np.where(near, distance, 0)], 0.0)
    found[:, -1] += 1.0 - found.sum(1)
    return found
