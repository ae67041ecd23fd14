"""Choosing what is never trained on, while the corpus streams by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from wafergpt.data.config import HeldOut, HeldOutMode
from wafergpt.data.corpus import Piece


@dataclass(frozen=True)
class Part:
    """A piece and the side of the split it belongs to."""

    piece: Piece
    held_out: bool


def split(pieces: Iterable[Piece], rule: HeldOut) -> Iterator[Part]:
    """Put each piece on its side; with blocks, pieces are cut where the side changes and end there.

    What comes out is the same however the documents were cut into pieces.
    """
    if rule.mode is HeldOutMode.BLOCKS:
        yield from _by_blocks(pieces, rule)
        return
    number = 0  # of the document
    for piece in pieces:
        chosen = rule.mode is HeldOutMode.DOCUMENTS and number % rule.every == rule.every - 1
        yield Part(piece, chosen)
        number += piece.ends_document


def _by_blocks(pieces: Iterable[Piece], rule: HeldOut) -> Iterator[Part]:
    period = rule.block_chars * rule.every
    train_chars = period - rule.block_chars  # the first of each period
    position = 0  # characters of the corpus so far, within its period
    for piece in pieces:
        start = 0
        while True:
            border = train_chars if position < train_chars else period
            end = min(len(piece.text), start + border - position)
            is_last = end == len(piece.text)
            at_border = end - start == border - position
            ends = (piece.ends_document and is_last) or at_border
            yield Part(replace(piece, text=piece.text[start:end], ends_document=ends), border == period)
            position = (position + end - start) % period
            start = end
            if is_last:
                break
