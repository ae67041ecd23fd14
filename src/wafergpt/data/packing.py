"""Packing: documents end to end, each followed by one end-of-text id, with no padding anywhere.

This is Cerebras-GPT's rule (Model Zoo 1.9.1, hdf5_dataset_preprocessors.py). Windows are cut by the loader,
so the same shards serve every sequence length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from wafergpt.tokenizer.encoder import TokenArray


class Packer:
    """Puts the end-of-text id after every document that has any ids; documents may come in pieces."""

    def __init__(self, end_of_text_id: int) -> None:
        self._end_of_text_id = end_of_text_id
        self._inside = False
        self.n_documents = 0

    def add(self, ids: TokenArray, ends_document: bool) -> Iterator[TokenArray]:
        """What the packed stream gains with the next ids (shape [n]) of the current document."""
        if len(ids):
            self._inside = True
            yield ids
        if ends_document and self._inside:
            self._inside = False
            self.n_documents += 1
            yield np.array([self._end_of_text_id], ids.dtype)


def pack(pieces: Iterable[tuple[TokenArray, bool]], end_of_text_id: int) -> Iterator[TokenArray]:
    """Yield the id arrays (shape [n]) of the packed stream from (ids, ends its document) pairs.

    A document may come in several pieces; a document without ids leaves nothing, not even its end.
    """
    packer = Packer(end_of_text_id)
    for ids, ends_document in pieces:
        yield from packer.add(ids, ends_document)


def n_windows(n_tokens: int, seq_len: int) -> int:
    """How many windows of `seq_len` + 1 ids, `seq_len` apart, fit into `n_tokens` ids.

    Neighbours share one id, so every id but the first is a label once; a short tail is left over.
    """
    return max(0, (n_tokens - 1) // seq_len)
