"""Text files of every accepted kind as a stream of documents, in pieces, so that memory stays flat.

A txt file is one document; a line of jsonl, a row of csv or parquet is one document each. UTF-8 is checked;
an error names file and byte.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wafergpt.errors import DataError, MissingDependencyError
from wafergpt.tokenizer.pretokens import last_safe_cut

READ_BYTES = 1 << 20  # of a txt file at a time
MAX_LINE_BYTES = 1 << 28  # of jsonl: a longer line is not a document but damage


@dataclass(frozen=True, kw_only=True)
class Document:
    """One whole document and the file it came from."""

    text: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive text of one document; encoding piece by piece equals encoding the whole."""

    text: str
    ends_document: bool
    origin: str


def read_documents(sources: Sequence[Path | str], text_key: str = "text") -> Iterator[Document]:
    """Every document of `sources`, whole. Raises DataError naming file and place."""
    parts: list[str] = []
    for piece in read_pieces(expand(sources), text_key):
        parts.append(piece.text)
        if piece.ends_document:
            yield Document(text="".join(parts), origin=piece.origin)
            parts = []


def expand(sources: Sequence[Path | str]) -> list[Path]:
    """Files named by paths, folders (all files below, of a known kind) and globs, sorted within each.

    Raises DataError for a source that names nothing, a file of an unknown kind, or an empty file.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) is not None)
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"'{source}' does not exist or holds no text file ({', '.join(_READERS)})")
        files.extend(found)
    for file in files:
        if kind_of(file) is None:
            raise DataError(f"'{file}' is of no kind that can be read ({', '.join(_READERS)})")
        if file.stat().st_size == 0:
            raise DataError(f"'{file}' is empty")
    return files


def kind_of(path: Path) -> str | None:
    """The suffix that decides how the file is read, or None."""
    name = path.name.lower()
    return next((suffix for suffix in _READERS if name.endswith(suffix)), None)


def read_pieces(files: Sequence[Path], text_key: str = "text") -> Iterator[Piece]:
    """The pieces of every document of `files`, in order. Raises DataError, MissingDependencyError."""
    for file in files:
        kind = kind_of(file)
        assert kind is not None, "expand() refuses files of an unknown kind"
        try:
            yield from _READERS[kind](file, text_key)
        except OSError as error:
            raise DataError(f"cannot read '{file}': {error.strerror or error}") from None


def _read_txt(path: Path, _: str) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    carried, read_bytes = "", 0
    with open(path, "rb") as file:
        while True:
            data = file.read(READ_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                carried += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = read_bytes - pending + error.start
                raise DataError(
                    f"'{path}' is not UTF-8: byte {at} is 0x{error.object[error.start]:02x}"
                ) from None
            read_bytes += len(data)
            if not data:
                break
            cut = last_safe_cut(carried, 0, len(carried) - 1) if len(carried) > 1 else None
            if cut:
                yield Piece(text=carried[:cut], ends_document=False, origin=str(path))
                carried = carried[cut:]
    yield Piece(text=carried, ends_document=True, origin=str(path))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    name = path.name.lower()
    if name.endswith(".gz"):
        with gzip.open(path, "rb") as plain:
            yield plain  # type: ignore[misc]
    elif name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise _missing("zstandard", path) from None
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield io.BufferedReader(stream)
    else:
        with open(path, "rb") as plain:
            yield plain


def _read_jsonl(path: Path, text_key: str) -> Iterator[Piece]:
    with _opened(path) as file:
        number = 0
        try:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise DataError(f"'{path}' line {number} is longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    text = _json_text(line, text_key, f"'{path}' line {number}")
                    yield Piece(text=text, ends_document=True, origin=str(path))
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"'{path}' is damaged after line {number}: {error}") from None


def _json_text(line: bytes, text_key: str, where: str) -> str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get(text_key), str):
        have = f"; it has {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise DataError(f"{where} has no text under '{text_key}'{have}")
    text: str = value[text_key]
    return text


def _read_csv(path: Path, text_key: str) -> Iterator[Piece]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        try:
            if text_key not in (rows.fieldnames or ()):
                raise DataError(
                    f"'{path}' has no column '{text_key}'; it has {', '.join(rows.fieldnames or ())}"
                )
            for row in rows:
                if row[text_key] is None:
                    raise DataError(f"'{path}' line {rows.line_num} has no '{text_key}'")
                yield Piece(text=row[text_key], ends_document=True, origin=str(path))
        except UnicodeDecodeError as error:
            raise DataError(f"'{path}' is not UTF-8 near line {rows.line_num + 1}: {error.reason}") from None
        except csv.Error as error:
            raise DataError(f"'{path}' line {rows.line_num}: {error}") from None


def _read_parquet(path: Path, text_key: str) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _missing("pyarrow", path) from None
    try:
        with parquet.ParquetFile(path) as file:
            if text_key not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"'{path}' has no column '{text_key}'; it has {names}")
            row = 0
            for batch in file.iter_batches(columns=[text_key], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if not isinstance(text, str):
                        raise DataError(f"'{path}' row {row} has no text under '{text_key}'")
                    yield Piece(text=text, ends_document=True, origin=str(path))
    except pyarrow.ArrowException as error:
        raise DataError(f"'{path}' cannot be read as parquet: {error}") from None


def _missing(package: str, path: Path) -> MissingDependencyError:
    install = "pip install 'wafergpt[data]'"
    return MissingDependencyError(f"reading '{path}' needs {package}; install it with: {install}")


_READERS: dict[str, Callable[[Path, str], Iterator[Piece]]] = {
    ".txt": _read_txt,
    ".md": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
