"""Every corpus reads as clean documents; counts as measured on the published files."""

from __future__ import annotations

import re

import pytest

from wafergpt.assets.corpora import READERS, documents
from wafergpt.assets.readers import bible
from wafergpt.assets.readers.novels import unwrap
from wafergpt.assets.table import ASSETS
from wafergpt.errors import AssetError

# Chapters of the 66 books: 1,189 in all, the same in every English Bible.
# fmt: off
CHAPTERS = [
    50, 40, 27, 36, 34, 24, 21, 4, 31, 24, 22, 25, 29, 36, 10, 13, 10, 42, 150, 31, 12, 8,
    66, 52, 5, 48, 12, 14, 3, 9, 1, 4, 7, 3, 3, 3, 2, 14, 4, 28, 16, 24, 21, 28,
    16, 16, 13, 6, 6, 4, 4, 5, 3, 6, 4, 3, 1, 13, 5, 5, 3, 5, 1, 1, 1, 22,
]
# fmt: on


def read(name: str) -> list[tuple[str, str]]:
    try:
        return [(document.title, document.text) for document in documents(name)]
    except AssetError as error:
        pytest.skip(str(error))


def test_every_corpus_has_a_reader() -> None:
    assert set(READERS) == {name for name, asset in ASSETS.items() if asset.is_corpus}


def test_pydoc_is_always_there() -> None:
    texts = dict(read("pydoc"))
    assert len(texts) > 70
    assert texts["while"].startswith('The "while" statement')


def test_verses_are_joined_and_cleaned() -> None:
    raw = "  in [the] land ( of Cush).  It was *** so\\ .[] God`s"
    assert bible.clean(raw) == "in the land (of Cush). It was ... so. God's"


def test_printed_lines_become_paragraphs() -> None:
    lines = ["CHAPTER 1", "", "", "It was", " a dark night.", ""]
    assert unwrap(lines) == "CHAPTER 1\n\nIt was a dark night.\n"


@pytest.mark.assets
def test_the_bible_in_basic_english_is_whole_and_clean() -> None:
    books = read("bible-bbe")
    assert [text.strip().count("\n\n") + 1 for _, text in books] == CHAPTERS
    assert [title for title, _ in (books[0], books[18], books[-1])] == ["Genesis", "Psalms", "Revelation"]
    text = "".join(text for _, text in books)
    assert len(text) == 4_177_366
    assert set(text) <= set("\n !'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    assert not re.search(r"  | [,;:?!]|[,;:]{2}|[a-z][A-Z]", text)
    assert books[0][1].startswith("At the first God made the heaven and the earth. And the earth was waste")


@pytest.mark.long
@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "n_documents", "n_chars", "phrase"),
    [
        ("bible-kjv", 66, 4_139_656, "The LORD is my shepherd; I shall not want."),
        ("bible-web", 66, 4_028_729, "Yahweh is my shepherd: I shall lack nothing."),
        ("chitchat", 7168, None, "A: Hello\nA: How are you doing today?\nB: whats up MD\n"),
        ("sotu", 233, 10_760_020, "Fellow-Citizens of the Senate and House of Representatives"),
        ("moby-dick", 135, 1_189_401, "CHAPTER 1. Loomings.\n\nCall me Ishmael. Some years ago"),
        ("janeausten", 6, 4_022_316, "Emma Woodhouse, handsome, clever, and rich, with a comfortable home"),
        ("wordnet", 120, 12_419_539, "physical entity (noun): an entity that has physical existence\n"),
        ("gcide", 128, 39_952_321, "Acrophony \\A*croph"),
    ],
)
def test_the_other_corpora(name: str, n_documents: int, n_chars: int | None, phrase: str) -> None:
    found = read(name)
    assert len(found) == n_documents
    assert n_chars is None or sum(len(text) for _, text in found) == n_chars
    assert any(phrase in text for _, text in found)
    if name in ("bible-kjv", "bible-web"):
        assert [text.strip().count("\n\n") + 1 for _, text in found] == CHAPTERS
