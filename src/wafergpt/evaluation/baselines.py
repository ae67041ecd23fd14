"""What a neural model must beat on the same held-out text: compressors and Kneser-Ney n-grams.

All in bits per byte of the held-out text, counted as `perplexity.COUNTING` says.
"""

from __future__ import annotations

import gzip
import lzma
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import DataError
from wafergpt.evaluation.ngram import KneserNey
from wafergpt.evaluation.perplexity import bits_per_byte
from wafergpt.evaluation.report import Kind, Row

ORDERS = (1, 3, 5)


def compressor_rows(held_out_text: bytes, train_text: bytes = b"") -> tuple[Row, ...]:
    """`gzip -9` on the held-out text alone; with a training text also gzip and xz that have read it first.

    "Read first" means the growth of the compressed size when the held-out text is put behind the
    training text. gzip looks back 32 KiB only (RFC 1951), xz over the whole of it (up to 64 MiB).
    Raises DataError for an empty held-out text.
    """
    if not held_out_text:
        raise DataError("there is no held-out text to compress")
    rows = [_compressor_row("gzip -9", _gzip_bytes, held_out_text, b"")]
    if train_text:
        rows.append(_compressor_row("gzip -9 after training text", _gzip_bytes, held_out_text, train_text))
        rows.append(_compressor_row("xz -9e after training text", _xz_bytes, held_out_text, train_text))
    return tuple(rows)


def ngram_rows(
    train_ids: NDArray[np.integer],
    held_out_ids: NDArray[np.integer],
    *,
    n_text_bytes: int,
    vocab_size: int,
    end_of_text_id: int,
    orders: Sequence[int] = ORDERS,
) -> tuple[Row, ...]:
    """Interpolated modified Kneser-Ney of each order, trained on `train_ids` [N], on `held_out_ids` [M].

    Both are streams with an end-of-text token after each document. Raises DataError for an empty stream
    or an id outside the vocabulary.
    """
    rows = []
    for order in orders:
        started_s = time.perf_counter()
        model = KneserNey.train(train_ids, order=order, vocab_size=vocab_size, end_of_text_id=end_of_text_id)
        nats = model.score(held_out_ids)
        rows.append(
            Row(
                name=f"{order}-gram Kneser-Ney",
                kind=Kind.NGRAM,
                bits_per_byte=bits_per_byte(float(nats.sum()), n_text_bytes),
                nats_per_token=float(nats.mean()),
                duration_s=time.perf_counter() - started_s,
                details=f"interpolated modified, {len(train_ids):,} training tokens",
            )
        )
    return tuple(rows)


def _gzip_bytes(text: bytes) -> int:
    return len(gzip.compress(text, compresslevel=9, mtime=0))


def _xz_bytes(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def _compressor_row(name: str, size_bytes: Callable[[bytes], int], text: bytes, before: bytes) -> Row:
    started_s = time.perf_counter()
    grown_bytes = size_bytes(before + text) - (size_bytes(before) if before else 0)
    return Row(
        name=name,
        kind=Kind.COMPRESSOR,
        bits_per_byte=8 * grown_bytes / len(text),
        duration_s=time.perf_counter() - started_s,
        details=f"after {len(before):,} bytes of training text" if before else "held-out text alone",
    )
