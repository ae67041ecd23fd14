"""Packing: documents end to end, each followed by one end-of-text id, with no padding anywhere.

This is Cerebras-GPT's rule (Model Zoo 1.9.1, hdf5_dataset_preprocessors.py). Windows are cut by the loader,
so the same shards serve every sequence length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wafergpt.tokenizer.encoder import TokenArray


class Packer:
    """Passes ids on to `write` and puts the end-of-text id after every document that has any."""

    def __init__(self, write: Callable[[TokenArray], None], end_of_text_id: int) -> None:
        self._write = write
        self._end_of_text_id = end_of_text_id
        self._inside = False
        self.n_documents = 0
        self.n_tokens = 0

    def add(self, ids: TokenArray, *, ends_document: bool) -> None:
        """The next ids (shape [n], n may be 0) of the current document, and whether it ends with them."""
        if len(ids):
            self._inside = True
            self._write(ids)
            self.n_tokens += len(ids)
        if ends_document and self._inside:
            self._inside = False
            self._write(np.array([self._end_of_text_id], ids.dtype))
            self.n_tokens += 1
            self.n_documents += 1


def n_windows(n_tokens: int, seq_len: int) -> int:
    """How many windows of `seq_len` + 1 ids, `seq_len` apart, fit into `n_tokens` ids.

    Neighbours share one id, so every id but the first is a label once; a short tail is left over.
    """
    return max(0, (n_tokens - 1) // seq_len)
