"""Which token comes next when a text that is being written follows another: a hidden Markov model of places.

A place j of the followed text says "its token j comes next". What is written moves the places, as in HMM
alignment (Vogel et al. 1996, HMM-based word alignment in statistical translation), but within one language.
A `Pointer` mixes that with what a model says, p = (1 - share) p_model + share p_pointer, as pointer networks
do (See et al. 2017, Get to the point); share and moves are given here, not learned.
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
        self.ids = np.array([*ids, end_id], np.int64)
        n = len(self.ids)
        self._after_copy, self._after_other = _moves(n, *AFTER_COPY), _moves(n, *AFTER_OTHER)
        self._read: list[int] = []
        self._at = np.eye(1, n, dtype=np.float64)[0]

    def after(self, new_ids: Sequence[int]) -> NDArray[np.float64]:
        """[places] after all of `new_ids`; the first part is not read again if the last call had it."""
        if list(new_ids[: len(self._read)]) != self._read:  # another beam
            self._read, self._at = [], np.eye(1, len(self.ids), dtype=np.float64)[0]
        for token_id in new_ids[len(self._read) :]:
            copied = self._at * COPIES * (self.ids == token_id)
            other = self._at * ((1 - COPIES) * OTHER)
            at = copied @ self._after_copy + other @ self._after_other
            self._at = at / at.sum()
        self._read = list(new_ids)
        found: NDArray[np.float64] = self._at
        return found


class Pointer:
    """Guides one answer: some of each token's probability goes where `followed` texts go on."""

    def __init__(self, followed: Sequence[tuple[Sequence[int], float]], end_id: int) -> None:
        """`followed`: token ids of a text and its share; the model keeps what is left of 1."""
        self._places = [(Places(ids, end_id), share) for ids, share in followed]
        self._kept = 1.0 - sum(share for _, share in followed)

    def __call__(self, new_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """log p [V] of the next token, from logits [V]."""
        p = np.exp(logits.astype(np.float64) - logits.max())
        p *= self._kept / p.sum()
        for places, share in self._places:
            np.add.at(p, places.ids, share * places.after(new_ids))
        found: NDArray[np.float32] = np.log(np.maximum(p, 1e-30)).astype(np.float32)
        return found


def _moves(n: int, stay: float, on: float) -> NDArray[np.float64]:
    """[from, to], rows of sum 1; what would go past the end goes to the end."""
    skips = 0.5 ** np.arange(1, LONGEST_SKIP + 1)
    steps = np.concatenate([[stay, on], (1 - stay - on) * skips / skips.sum()])
    found = np.zeros((n, n))
    for place in range(n):
        np.add.at(found[place], np.minimum(place + np.arange(len(steps)), n - 1), steps)
    return found
