"""What is held out: whole documents or blocks, whatever way the text arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.data.config import HeldOut, HeldOutMode
from wafergpt.data.corpus import Piece
from wafergpt.data.held_out import split
from wafergpt.errors import ConfigError


def in_pieces(texts: Iterable[str], size: int) -> list[Piece]:
    pieces = []
    for text in texts:
        starts = range(0, max(1, len(text)), size)
        pieces += [Piece(text=text[s : s + size], origin="x", ends_document=s == starts[-1]) for s in starts]
    return pieces


def sides(pieces: list[Piece], rule: HeldOut) -> list[tuple[bool, str]]:
    """(held out?, text) of every document that results, empty ones left out."""
    documents: list[tuple[bool, str]] = []
    text = {False: "", True: ""}
    for part in split(pieces, rule):
        text[part.held_out] += part.piece.text
        if part.piece.ends_document:
            documents.append((part.held_out, text[part.held_out]))
            text[part.held_out] = ""
    assert text == {False: "", True: ""}, "the last piece ends its document"
    return [document for document in documents if document[1]]


BLOCKS = HeldOut(mode=HeldOutMode.BLOCKS, every=3, block_chars=10)
TEXTS = ["abcdefghijklmnopqrstuvwxyz" * 3, "0123456789", "", "ABCDEFGHIJKLMNO"]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 11, 1000])
def test_blocks_by_hand(size: int) -> None:
    found = sides(in_pieces(TEXTS, size), BLOCKS)
    whole = "".join(TEXTS)
    assert [text for held_out, text in found if held_out] == [whole[20:30], whole[50:60], "23456789", "AB"]
    assert [text for held_out, text in found if not held_out] == [
        whole[0:20],
        whole[30:50],
        whole[60:78],
        "01",
        "CDEFGHIJKLMNO",
    ]


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text("abc", max_size=40), max_size=8),
    size=st.integers(1, 9),
    every=st.integers(2, 4),
    block=st.integers(1, 12),
)
def test_blocks_are_arithmetic_on_the_whole_text(texts: list[str], size: int, every: int, block: int) -> None:
    found = sides(in_pieces(texts, size), HeldOut(mode=HeldOutMode.BLOCKS, every=every, block_chars=block))
    whole = "".join(texts)
    assert "".join(text for _, text in found) == whole
    expected = "".join(c for i, c in enumerate(whole) if i // block % every == every - 1)
    assert "".join(text for held_out, text in found if held_out) == expected


@pytest.mark.parametrize("size", [2, 100])
def test_documents_and_none(size: int) -> None:
    texts = [f"document {n}" for n in range(7)]
    found = sides(in_pieces(texts, size), HeldOut(mode=HeldOutMode.DOCUMENTS, every=3))
    assert found == [(n % 3 == 2, text) for n, text in enumerate(texts)]
    assert not any(held_out for held_out, _ in sides(in_pieces(texts, size), HeldOut()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", HeldOut()),
        ("documents:7", HeldOut(mode=HeldOutMode.DOCUMENTS, every=7)),
        ("blocks:20:4000", HeldOut(mode=HeldOutMode.BLOCKS, every=20, block_chars=4000)),
    ],
)
def test_the_option_is_parsed(text: str, expected: HeldOut) -> None:
    assert HeldOut.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "every:2", "blocks:20", "blocks:20:0", "documents:-1", "documents:1", "none:3"]
)
def test_a_bad_option_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        HeldOut.parse(text)
