"""WordNet's glosses, the GNU dictionary and Python's own reference topics."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from wafergpt.assets.readers.document import TextDocument

_PART_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_LINES_PER_DOCUMENT = 1000
# At the end of a paragraph stands who wrote it, and where an entry ends, the head word of the next.
_SOURCE = re.compile(r"\[(?:1913 Webster|WordNet|Webster 1913|PJC|AS\]|RDH\]|Century Dict)[^\]\n]*\]?[^\n]*")
_PRONUNCIATION = re.compile(r"\\[^\\]*\\")


def wordnet(folder: Path) -> Iterator[TextDocument]:
    """A line per meaning, `words (part of speech): gloss`, a thousand to a document.

    A data line (wndb(5WN)) is `offset file type w_cnt word lex_id … | gloss`; w_cnt is hexadecimal.
    """
    for file_name, part in _PART_OF_SPEECH.items():
        lines = []
        for line in (folder / f"data.{file_name}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence at the top of the file
                continue
            fields, _, gloss = line.partition("|")
            columns = fields.split()
            words = [columns[4 + 2 * n].replace("_", " ") for n in range(int(columns[3], 16))]
            lines.append(f"{', '.join(words)} ({part}): {gloss.strip()}\n")
        for start in range(0, len(lines), _LINES_PER_DOCUMENT):
            title = f"{part} {start}"
            yield TextDocument(title=title, text="".join(lines[start : start + _LINES_PER_DOCUMENT]))


def gcide(folder: Path) -> Iterator[TextDocument]:
    """The dictionary's entries, about a thousand to a document; the file is gzip with extra index fields."""
    lines: list[str] = []
    n_entries = n_documents = 0
    with gzip.open(folder / "gcide.dict.dz") as file:
        for raw in file:
            line = _decode(raw)
            if line[:1].strip():  # a headword starts in the first column, its text is indented
                if n_entries >= _LINES_PER_DOCUMENT:
                    yield TextDocument(title=f"part {n_documents}", text="".join(lines))
                    lines, n_entries, n_documents = [], 0, n_documents + 1
                n_entries += 1
            lines.append(line)
    yield TextDocument(title=f"part {n_documents}", text="".join(lines))


def plain(text: str) -> str:
    """The dictionary's entries as prose: a line per paragraph, without pronunciations and source marks."""
    text = _SOURCE.sub("", text)
    paragraphs = []
    for block in text.split("\n\n"):
        paragraph = " ".join(_PRONUNCIATION.sub("", block).replace("{", "").replace("}", "").split())
        if paragraph:
            paragraphs.append(paragraph.replace(" ,", ","))
    return "\n\n".join(paragraphs) + "\n"


def _decode(raw: bytes) -> str:
    """UTF-8, but for the three of its 1.2 million lines that were typed as Windows-1252."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def python_topics(folder: Path) -> Iterator[TextDocument]:
    """The topics `help()` shows, from the running Python's standard library: English and code."""
    import pydoc_data.topics

    assert folder.name == "pydoc_data"
    for title, text in sorted(pydoc_data.topics.topics.items()):
        yield TextDocument(title=title, text=text.strip() + "\n")
