"""Files as strict UTF-8, block by block: decompressed on the fly, memory flat, errors with file and byte."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from wafergpt.errors import DataError, MissingDependencyError
from wafergpt.units import MIB

OnRead = Callable[[int], None]
"""Called with the number of bytes newly read from the file as it lies on the disk."""

COMPRESSIONS = (".gz", ".zst")
_BLOCK_BYTES = MIB
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def blocks(path: Path, on_read: OnRead) -> Iterator[bytes]:
    """The (decompressed) bytes of a file.

    Raises DataError if it cannot be read, is damaged or cut short, or changes while it is read.
    """
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            position = 0
            for block in _opener(path)(file):
                yield block
                now = file.tell()
                on_read(now - position)
                position = now
            after = os.fstat(file.fileno())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{path}' is damaged or cut short: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"'{path}' changed while it was read")


def decoded(path: Path, on_read: OnRead) -> Iterator[str]:
    """The text of a file, a leading byte-order mark taken off, otherwise unchanged (line ends too).

    Raises DataError naming file and byte for what is not UTF-8, and for a NUL, which no text file holds.
    """
    carry, offset = b"", 0  # offset: of the first byte of carry
    for block in blocks(path, on_read):
        data = carry + block
        yield from filter(None, [_decode(data, path, offset, final=False)])
        used = len(data) - _incomplete_tail(data)
        carry, offset = data[used:], offset + used
    if carry:
        _decode(carry, path, offset, final=True)


def lines(path: Path, on_read: OnRead) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of every line, ended by a line feed alone."""
    number = 1
    parts: list[str] = []
    for text in decoded(path, on_read):
        *complete, rest = text.split("\n")
        for line in complete:
            yield number, "".join((*parts, line, "\n"))
            number, parts = number + 1, []
        parts.append(rest)
    if last := "".join(parts):
        yield number, last


def _decode(data: bytes, path: Path, offset: int, *, final: bool) -> str:
    try:
        text, _ = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        hint = "; it looks like UTF-16" if offset == 0 and data[:2] in _UTF16_MARKS else ""
        at, byte = offset + error.start, data[error.start]
        raise DataError(f"'{path}' is not UTF-8: byte {at} is 0x{byte:02x} ({error.reason}){hint}") from None
    if "\0" in text:
        at = offset + data.index(b"\0")
        raise DataError(f"'{path}' is not a text file: NUL at byte {at} (UTF-16 or binary data?)")
    return text.removeprefix("\ufeff") if offset == 0 else text


def _incomplete_tail(data: bytes) -> int:
    """How many bytes at the end of `data`, valid so far, begin a character that is not complete: 0 to 3."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 != 0x80:  # not a continuation byte, so a character starts here
            needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return length if needed > length else 0
    return 0


def _opener(path: Path) -> Callable[[IO[bytes]], Iterator[bytes]]:
    return {".gz": _gzip_blocks, ".zst": _zstd_blocks}.get(path.suffix.lower(), _plain_blocks)


def _plain_blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _gzip_blocks(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unzipped:
        while block := unzipped.read(_BLOCK_BYTES):
            yield block


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingDependencyError(
            "reading .zst files needs zstandard: pip install 'wafergpt[data]'"
        ) from None
    frame: Any = None
    try:
        while data := file.read(_BLOCK_BYTES // 4):
            while data:  # a file may hold several frames
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(data):
                    yield block
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if frame is not None:
        raise EOFError("the last frame is not complete")
