"""Bibles from the pythonbible packages: generated Python files read as data with `ast`, never run.

A file holds one call `Bible(version, text, verse starts, verse ends, verse counts, titles, …)`. One
document per book; a paragraph per chapter; verses joined to prose, without numbers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wafergpt.assets.readers.document import TextDocument
from wafergpt.errors import AssetError

Chapters = list[list[str]]
"""Chapters of one book, each a list of verses."""

# In the plain text of the Basic English version every verse is preceded by `12. `, or where the numbering of
# the Hebrew text differs by `39. \43:1\` (then the pair of chapter and verse counts); there are no other
# digits. A book begins with a verse 1 that no space precedes.
_MARKER = re.compile(r"(?P<space>\s*)(?P<plain>\d+)\. ?(?:\\(?P<chapter>\d+):(?P<verse>\d+)\\)?")
# The World English Bible leaves the heading of the next psalm at the end of a verse.
_PSALM_HEADING = re.compile(r"\s*(?:BOOK [IV]+)?\s*Psalm \d+\b")


def basic_english(folder: Path) -> Iterator[TextDocument]:
    """The Bible in Basic English."""
    yield from _documents(*basic_english_books(folder))


def by_offsets(folder: Path) -> Iterator[TextDocument]:
    """The King James and World English Bibles."""
    yield from _documents(*books_by_offsets(folder))


def basic_english_books(folder: Path) -> tuple[list[Chapters], list[str]]:
    """(books, their titles); its verse offsets are off by some characters, so markers are read."""
    text, titles = _text_and_titles(folder / "plain_text_bible.py")
    books: list[Chapters] = []
    markers = list(_MARKER.finditer(text))
    for marker, following in zip(markers, [*markers[1:], None], strict=True):
        if not marker["space"] and marker["plain"] == "1":
            books.append([])
        starts_chapter = int(marker["verse"] or marker["plain"]) == 1
        if starts_chapter and marker["chapter"] != str(len(books[-1])):  # else it ended a psalm's title
            books[-1].append([])
        end = following.start() if following else len(text)
        books[-1][-1].append(text[marker.end() : end])
    return books, titles


def books_by_offsets(folder: Path) -> tuple[list[Chapters], list[str]]:
    """(books, their titles), cut at the verse offsets the files of KJV and WEB give."""
    path = next(folder.glob("plain_text_readers_bible.py"))
    call = _call(path)
    text, titles = _text_and_titles(path)
    starts: dict[int, int] = ast.literal_eval(call.args[2])
    ends: dict[int, int] = ast.literal_eval(call.args[3])
    books: list[Chapters] = []
    heading = ""
    book = chapter = 0
    for verse_id in sorted(starts):  # BBCCCVVV
        if verse_id // 1_000_000 != book:
            book = verse_id // 1_000_000
            chapter = 0
            books.append([])
        if verse_id // 1000 % 1000 != chapter:
            chapter = verse_id // 1000 % 1000
            books[-1].append([])
        verse = heading + text[starts[verse_id] : ends[verse_id]]
        heading = ""
        if found := _PSALM_HEADING.search(verse):
            heading = verse[found.end() :].strip() + " "
            verse = verse[: found.start()]
        books[-1][-1].append(verse)
    return books, titles


def verse_by_verse(king_james: Path, world: Path, basic: Path) -> Iterator[TextDocument]:
    """A document per book: each verse in the King James, World English and Basic English versions.

    Chapters that they divide into different numbers of verses stand whole, one version after another.
    """
    basic_books, titles = basic_english_books(basic)
    versions = [books_by_offsets(king_james)[0], books_by_offsets(world)[0], basic_books]
    for title, *books in zip(titles, *versions, strict=True):
        groups: list[Sequence[str]] = []
        for chapters in zip(*books, strict=True):
            if len({len(chapter) for chapter in chapters}) == 1:
                groups += zip(*chapters, strict=True)
            else:
                groups.append([" ".join(chapter) for chapter in chapters])
        texts = ["\n".join(filter(None, map(clean, group))) for group in groups]
        yield TextDocument(title=title, text="\n\n".join(filter(None, texts)) + "\n")


def verse_pairs(king_james: Path, basic: Path) -> Iterator[dict[str, Any]]:
    """{"source", "target", "group"}: a verse of the King James Version, the same in Basic English, its book.

    Chapters that the two divide into different numbers of verses are left out: 66, nearly all psalms.
    """
    sources, _ = books_by_offsets(king_james)
    targets, titles = basic_english_books(basic)
    for title, source_book, target_book in zip(titles, sources, targets, strict=True):
        for source_chapter, target_chapter in zip(source_book, target_book, strict=True):
            if len(source_chapter) == len(target_chapter):
                pairs = zip(map(clean, source_chapter), map(clean, target_chapter), strict=True)
                for source, target in pairs:
                    if source and target:  # Basic English joins some verses, and leaves the second empty
                        yield {"source": source, "target": target, "group": title}


def _call(path: Path) -> ast.Call:
    assignment = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    if not isinstance(assignment, ast.Assign) or not isinstance(assignment.value, ast.Call):
        raise AssetError(f"'{path}' is not the file of a Bible this reader knows")
    return assignment.value


def _text_and_titles(path: Path) -> tuple[str, list[str]]:
    arguments = _call(path).args
    titles = arguments[6]
    assert isinstance(arguments[1], ast.Constant)
    assert isinstance(titles, ast.Dict)
    return str(arguments[1].value), [ast.literal_eval(title) for title in titles.values]


def _documents(books: list[Chapters], titles: list[str]) -> Iterator[TextDocument]:
    for chapters, title in zip(books, titles, strict=True):
        paragraphs = (clean(" ".join(verses)) for verses in chapters)
        yield TextDocument(
            title=title, text="\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"
        )


def clean(text: str) -> str:
    """Prose without the apparatus: note marks, brackets round supplied words, gaps, odd quotes."""
    text = re.sub(r"\[\]|\\|\+", " ", text)
    text = re.sub(r"[\[\]]", "", text).replace("***", "...").replace("`", "'").replace("’", "'")
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\( ", "(", re.sub(r" +([,.;:?!)])(?!\.)", r"\1", text))
