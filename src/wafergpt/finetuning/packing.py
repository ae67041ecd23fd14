"""Examples to batches: packed into rows, never cut, a pure function of the position; exact means over a step.

A row is a list of whole examples. Batches have no padding: all examples of a batch lie end to end, with their
lengths beside them, and the model keeps them apart (`GPT.packed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wafergpt.config import require
from wafergpt.data.loader import permute
from wafergpt.errors import DataError
from wafergpt.tasks.task import Encoded, Objective

IGNORED = -100  # labels that the loss leaves out, as in `model.gpt`
_OPEN_ROWS = 64  # rows that may still take an example while packing


def pack(lengths: Sequence[int], seq_len: int, order: Sequence[int]) -> list[list[int]]:
    """Rows of example numbers of at most `seq_len` positions: in `order`, into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in order:
        require(lengths[number] <= seq_len, f"an example of {lengths[number]} tokens does not fit {seq_len}")
        first = max(0, len(rows) - _OPEN_ROWS)
        found = next((i for i in range(first, len(rows)) if room[i] >= lengths[number]), None)
        if found is None:
            rows.append([])
            room.append(seq_len)
            found = len(rows) - 1
        rows[found].append(number)
        room[found] -= lengths[number]
    return rows


class PackedExamples:
    """Rows of examples, shuffled anew in each epoch by (seed, epoch) alone."""

    def __init__(
        self,
        examples: Sequence[Encoded],
        objective: Objective,
        *,
        seq_len: int,
        seed: int = 0,
        batch_size: int = 1,
        micro_batch_size: int = 1,
        weights: Sequence[float] = (),
    ) -> None:
        """`batch_size` rows make a step; `weights` are those of the labels.

        Raises DataError when an example has nothing to learn from: its loss would be a silent zero.
        """
        for number, example in enumerate(examples):
            if example.n_counted == 0:
                raise DataError(f"example {number + 1}: the mask leaves no token to learn from")
        if not examples:
            raise DataError("there is no example to learn from")
        self.examples = list(examples)
        self.objective = objective
        self.seed = seed
        self.batch_size = batch_size
        self.n_micro_batches = batch_size // micro_batch_size
        self.weights = np.array(weights, np.float32)
        numbers = np.arange(len(examples), dtype=np.uint64)
        order = [int(i) for i in permute(numbers, len(examples), seed, 0)]
        self.rows = pack([example.n_positions for example in examples], seq_len, order)
        self.n_samples = len(self.rows)
        """Rows in one epoch."""
        self._row_tokens = np.array([sum(self.examples[i].n_positions for i in row) for row in self.rows])
        self._row_counts = np.array([sum(self._count(self.examples[i]) for i in row) for row in self.rows])

    def _count(self, example: Encoded) -> float:
        """What an example adds to the denominator of the mean."""
        if self.objective is Objective.LABEL and len(self.weights):
            return float(self.weights[example.label])
        return float(example.n_counted)

    def row_numbers(self, index0: int, n: int) -> npt.NDArray[np.int64]:
        """The rows at positions index0 ... index0 + n - 1; a position is epoch x n_samples + index."""
        found = np.empty(n, np.int64)
        positions = np.arange(index0, index0 + n)
        for epoch in np.unique(positions // self.n_samples):
            here = positions // self.n_samples == epoch
            indices = (positions[here] - epoch * self.n_samples).astype(np.uint64)
            # Epoch 0 packed the rows; the order of rows is drawn by the next one's keys.
            found[here] = permute(indices, self.n_samples, self.seed, int(epoch) + 1)
        return found

    def n_tokens(self, n_samples: int) -> int:
        """Positions of the first `n_samples` rows."""
        epochs, rest = divmod(n_samples, self.n_samples)
        begun = self._row_tokens[self.row_numbers(epochs * self.n_samples, rest)].sum() if rest else 0
        return int(epochs * self._row_tokens.sum() + begun)

    def batch(self, index0: int, batch_size: int) -> tuple[npt.NDArray[Any], ...]:
        """(ids [N], lengths [n], targets, scale []) of some rows of one step.

        The objective's sum over the batch times `scale`, averaged over a step's micro-batches and processes,
        is the mean over everything that counts in the step, whatever the micro-batches hold.
        """
        step = index0 // self.batch_size
        whole = self._row_counts[self.row_numbers(step * self.batch_size, self.batch_size)].sum()
        scale = np.array(self.n_micro_batches / whole, np.float32)
        return (*self.arrays(self.row_numbers(index0, batch_size)), scale)

    def arrays(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        """(ids [N], lengths [n], targets) of these rows' examples, end to end.

        Targets are the next tokens [N] with -100 where none counts, or these beside the id and the nats of
        their hints [N, 3]; labels [n]; or spans [N, 3]: 1 at an answer's first and at its last token, and
        what is added to logits, -infinity outside of the passage. Float32 holds every id below 2^24.
        """
        chosen = [self.examples[i] for row in rows for i in self.rows[row]]
        ids = np.array([i for example in chosen for i in example.ids[: example.n_positions]], np.int64)
        lengths = np.array([example.n_positions for example in chosen], np.int64)
        return ids, lengths, _targets(chosen, self.objective)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every id and target, in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            told = (*example.counted, example.label, *example.span)
            for values in (example.ids, told):
                digest.update(np.array([len(values), *values], np.int64).tobytes())
            digest.update(np.array(example.added, np.float32).tobytes())
            digest.update(np.array(example.hints, np.float64).tobytes())
        return digest.hexdigest()


def _targets(examples: Sequence[Encoded], objective: Objective) -> npt.NDArray[Any]:
    if objective is Objective.LABEL:
        return np.array([example.label for example in examples], np.int64)
    if objective is Objective.SPAN:
        return np.concatenate([_span_target(example) for example in examples])
    wanted = np.array(
        [
            i if counts else IGNORED
            for example in examples
            for i, counts in zip(example.ids[1:], example.counted[1:], strict=True)
        ],
        np.int64,
    )
    if not any(example.hints for example in examples):
        return wanted
    hints = [hint for example in examples for hint in example.hints[1:]]
    return np.concatenate([wanted[:, None], np.array(hints)], 1, dtype=np.float32)


def _span_target(example: Encoded) -> npt.NDArray[np.float32]:
    first, last, passage = example.span
    found = np.zeros((len(example.ids), 3), np.float32)
    found[first, 0] = found[last, 1] = 1.0
    found[:passage, 2] = -np.inf
    if example.added:
        found[passage:, 2] = example.added
    return found
