"""Packing: documents end to end, each followed by one end-of-text id, with no padding anywhere.

This is Cerebras-GPT's rule (Model Zoo 1.9.1, hdf5_dataset_preprocessors.py). Windows are cut by the loader,
so the same shards serve every sequence length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from wafergpt.tokenizer.encoder import TokenArray


def pack(pieces: Iterable[tuple[TokenArray, bool]], end_of_text_id: int) -> Iterator[TokenArray]:
    """Yield the id arrays (shape [n]) of the packed stream from (ids, ends its document) pairs.

    A document may come in several pieces; a document without ids leaves nothing, not even its end.
    """
    open_document = False
    for ids, ends in pieces:
        if len(ids):
            open_document = True
            yield ids
        if ends and open_document:
            open_document = False
            yield np.array([end_of_text_id], ids.dtype)


def n_windows(n_tokens: int, seq_len: int) -> int:
    """How many windows of `seq_len` + 1 ids, `seq_len` apart, fit into `n_tokens` ids.

    Neighbours share one id, so every id but the first is a label once; a short tail is left over.
    """
    return max(0, (n_tokens - 1) // seq_len)
