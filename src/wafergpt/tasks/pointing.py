"""Hints: what comes next if the text that is being written follows another one; the model decides.

A hidden Markov model of places, as in HMM alignment (Vogel et al. 1996, HMM-based word alignment in
statistical translation) but within one language: a place j of the followed text says "its token j comes
next", and what is written moves the places. The likeliest token is the hint. In an answer with hints each
token stands after its hint, so that to copy is to repeat the token before, which a small model learns
soon; what pointer networks (See et al. 2017, Get to the point) learn about places is given here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# How a writer moves. Only the order of magnitude of each matters: a text that is copied is found again.
COPIES = 0.6  # the token of the place is written as it stands
OTHER = 1e-3  # any one token that is written instead of it
AFTER_COPY = (0.0, 0.9)  # stay, go on; what is left skips 1, 2, ... tokens, each half as likely
AFTER_OTHER = (0.3, 0.4)
LONGEST_SKIP = 8


class Places:
    """Where in `ids` the writer is: a probability for each place, the last of them the end of the text."""

    def __init__(self, ids: Sequence[int], end_id: int) -> None:
        """`end_id` is the hint after the last token."""
        self.ids = np.array([*ids, end_id], np.int64)
        n = len(self.ids)
        self._after_copy, self._after_other = _moves(n, *AFTER_COPY), _moves(n, *AFTER_OTHER)
        self.at = np.eye(1, n, dtype=np.float64)[0]

    def read(self, token_id: int) -> None:
        """Go on by one token that was written."""
        copied = self.at * COPIES * (self.ids == token_id)
        other = self.at * ((1 - COPIES) * OTHER)
        at = copied @ self._after_copy + other @ self._after_other
        self.at = at / at.sum()

    @property
    def hint(self) -> int:
        """The likeliest next token; among equals the one that stands first."""
        _, which = np.unique(self.ids, return_inverse=True)
        p = np.bincount(which, weights=self.at)
        return int(self.ids[np.flatnonzero(p[which] == p.max())[0]])


def with_hints(told: Sequence[int], places: Places) -> list[int]:
    """Each token after its hint."""
    found = []
    for token_id in told:
        found += [places.hint, token_id]
        places.read(token_id)
    return found


class HintFirst:
    """A guide: every second token, from the first on, is the hint; the others are the model's."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._n_read = 0

    def __call__(self, new_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits [V], or the hint alone."""
        if len(new_ids) % 2:
            return logits
        for token_id in new_ids[1::2][self._n_read :]:
            self._places.read(token_id)
        self._n_read = len(new_ids) // 2
        forced = np.full_like(logits, -np.inf)
        forced[self._places.hint] = 0.0
        return forced


def _moves(n: int, stay: float, on: float) -> NDArray[np.float64]:
    """[from, to], rows of sum 1; what would go past the end goes to the end."""
    skips = 0.5 ** np.arange(1, LONGEST_SKIP + 1)
    steps = np.concatenate([[stay, on], (1 - stay - on) * skips / skips.sum()])
    distance = np.arange(n)[None, :] - np.arange(n)[:, None]
    near = (distance >= 0) & (distance < len(steps))
    found = np.where(near, steps[np.where(near, distance, 0)], 0.0)
    found[:, -1] += 1.0 - found.sum(1)
    return found
