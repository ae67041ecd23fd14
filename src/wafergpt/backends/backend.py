"""The one face of every place a forward pass can run (no torch).

Token ids go in as Python ints, logits come out as float32 NumPy rows; tensors never cross. Whoever
generates or evaluates text knows this Protocol and nothing of torch, caches or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import WaferGPTError

LogitRows = NDArray[np.float32]  # [N, V]


class OutOfPages(WaferGPTError):  # noqa: N818 (a state of the memory, met every day)
    """The key-value memory is too short for a step; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The key-value memory of a backend: `n_pages` pages of `page_tokens` positions each."""

    page_tokens: int
    n_pages: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The next positions of one sequence in a step that many sequences share."""

    sequence: int  # handle from `open` or `fork`
    token_ids: Sequence[int]  # at least one
    n_logits: int = 1  # rows for the last n positions; 0: none
    want_hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """What a step gave for one chunk; None for what was not asked for."""

    logits: LogitRows | None  # [n_logits, V]
    hidden: NDArray[np.float32] | None  # [n, D] of this chunk's positions, after the final LayerNorm


class Backend(Protocol):
    """Runs one model. All methods raise ConfigError for ids outside the vocabulary or a full window."""

    @property
    def vocab_size(self) -> int:
        """Number of logits in a row."""
        ...

    @property
    def max_seq_len(self) -> int:
        """Context window: the most positions that one sequence may hold."""
        ...

    @property
    def d_model(self) -> int:
        """Width of a hidden row."""
        ...

    @property
    def capacity(self) -> Capacity:
        """Key-value memory in all; `backends.pages.PageLedger` says how sequences share it."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a row has the same bits whatever else a step runs and however the prompt was cut."""
        ...

    def open(self) -> int:
        """A handle for a new, empty sequence. The caller must `release` it."""
        ...

    def fork(self, sequence: int, n_tokens: int) -> int:
        """A handle for a new sequence that starts with the first `n_tokens` positions of another.

        Whole pages are shared. Raises OutOfPages; ConfigError for an unknown handle or more than is held.
        """
        ...

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Append each chunk to its sequence, all in one step; results in the order of the chunks.

        Everything is checked before anything is changed. Raises OutOfPages; ConfigError for a chunk that
        cannot be run or a sequence named twice.
        """
        ...

    def release(self, sequence: int) -> None:
        """Forget a sequence and free its memory. Releasing an unknown handle is a ConfigError."""
        ...
