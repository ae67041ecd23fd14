"""Moby-Dick (plain text) and Jane Austen's novels (the lazy-load database of an R package)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from wafergpt.assets.readers.document import TextDocument
from wafergpt.errors import AssetError

_AUSTEN = (
    "Emma",
    "Mansfield Park",
    "Northanger Abbey",
    "Persuasion",
    "Pride & Prejudice",
    "Sense & Sensibility",
)
_STRSXP, _CHARSXP = 16, 9  # R Internals, section 1.8: serialisation types
_LATIN1_FLAG = 1 << 2 << 12


def moby_dick(folder: Path) -> Iterator[TextDocument]:
    """The novel, one document per chapter, lines joined to paragraphs."""
    text = (folder / "data.txt").read_text(encoding="utf-8")
    parts = text.split("\nCHAPTER ")
    for number, part in enumerate(parts):
        chapter = part if number == 0 else f"CHAPTER {part}"
        yield TextDocument(title=chapter.split("\n", 1)[0], text=unwrap(chapter.split("\n")))


def jane_austen(folder: Path) -> Iterator[TextDocument]:
    """The six novels. Each is one segment: a 4-byte length and a zlib stream of an R string vector."""
    data = (folder / "Rdata.rdb").read_bytes()
    position = 0
    for title in _AUSTEN:
        (length,) = struct.unpack_from(">I", data, position)
        segment = zlib.decompressobj()
        raw = segment.decompress(data[position + 4 :])
        if len(raw) != length:
            raise AssetError(f"the segment of '{title}' holds {len(raw)} bytes where {length} are declared")
        position = len(data) - len(segment.unused_data)
        yield TextDocument(title=title, text=unwrap(_r_strings(raw)))


def unwrap(lines: list[str]) -> str:
    """Lines of a printed page as paragraphs, one line each, with an empty line between."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line.strip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph) + "\n"


def _r_strings(raw: bytes) -> list[str]:
    """A character vector in R's XDR serialisation, version 3 (R Internals, section 1.8)."""
    position = raw.index(b"UTF-8") + 5  # header: format, versions, native encoding
    flags, count = struct.unpack_from(">ii", raw, position)
    position += 8
    if flags & 0xFF != _STRSXP:
        raise AssetError("the R object is not a vector of strings")
    lines = []
    for _ in range(count):
        flags, size = struct.unpack_from(">ii", raw, position)
        if flags & 0xFF != _CHARSXP:
            raise AssetError("the R vector holds something that is not a string")
        encoding = "latin-1" if flags & _LATIN1_FLAG else "utf-8"
        lines.append(raw[position + 8 : position + 8 + size].decode(encoding))
        position += 8 + size
    return lines
