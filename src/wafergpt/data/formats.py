"""One reader per file format: a stream of (text, ends its document) with errors that name the place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.data.streams import COMPRESSIONS, OnRead, decoded, lines
from wafergpt.errors import DataError, MissingDependencyError, did_you_mean
from wafergpt.tokenizer.pretokens import last_safe_cut

Texts = Iterator[tuple[str, bool]]
_LARGEST_CSV_FIELD = 1 << 30
_PARQUET_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which field of a record is the text, and what stands between documents of a text file."""

    text: str = "text"
    separator: str | None = None


def format_of(path: Path) -> str | None:
    """The suffix that decides the format, without compression; None if it is not one of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        compressed = True
    else:
        compressed = False
    suffix = suffixes[-1] if suffixes else ""
    return suffix if suffix in READERS and not (compressed and suffix == ".parquet") else None


def read_text(path: Path, fields: Fields, on_read: OnRead) -> Texts:
    """A text file is one document, or many with `fields.separator` between; pieces end at safe cuts."""
    separator = fields.separator
    carry = ""
    for text in decoded(path, on_read):
        searched = max(0, len(carry) - 1)
        carry += text
        if separator is not None:
            *documents, carry = carry.split(separator)
            yield from ((document, True) for document in documents)
            searched = 0 if documents else max(0, searched - len(separator))
        kept = len(separator) - 1 if separator else 0  # the start of a separator may lie at the end
        cut = last_safe_cut(carry, searched, len(carry) - kept - 1)
        if cut is not None:
            yield carry[:cut], False
            carry = carry[cut:]
    yield carry, True


def read_jsonl(path: Path, fields: Fields, on_read: OnRead) -> Texts:
    """One JSON object per line; blank lines are passed over."""
    for number, line in lines(path, on_read):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{where} is not JSON: {reason}") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{where} holds {type(record).__name__}, not an object with a field '{fields.text}'"
            )
        yield _text_of(record, fields.text, where), True


def read_csv(path: Path, fields: Fields, on_read: OnRead) -> Texts:
    """Comma-separated values (RFC 4180) with a header line; one document per row."""
    csv.field_size_limit(_LARGEST_CSV_FIELD)
    rows = csv.DictReader((line for _, line in lines(path, on_read)), strict=True, restkey="\0more")
    try:
        if rows.fieldnames is not None and fields.text not in rows.fieldnames:
            raise DataError(f"'{path}' has no column {_missing(fields.text, list(rows.fieldnames))}")
        for row in rows:
            where = f"'{path}' line {rows.line_num}"
            if "\0more" in row or None in row.values():
                raise DataError(f"{where}: the row has not as many fields as the header")
            yield _text_of(row, fields.text, where), True
    except csv.Error as error:
        raise DataError(f"'{path}' line {rows.reader.line_num} is not CSV: {error}") from None


def read_parquet(path: Path, fields: Fields, on_read: OnRead) -> Texts:
    """One document per row of the text column."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            "reading .parquet files needs pyarrow: pip install 'wafergpt[data]'"
        ) from None
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if fields.text not in names:
                raise DataError(f"'{path}' has no column {_missing(fields.text, names)}")
            bytes_per_row = path.stat().st_size / max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[fields.text]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _string(value, fields.text, f"'{path}' row {row}"), True
                on_read(int(bytes_per_row * batch.num_rows))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"'{path}' cannot be read as parquet (after row {row}): {error}") from None


READERS: dict[str, Callable[[Path, Fields, OnRead], Texts]] = {
    ".txt": read_text,
    ".text": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def _text_of(record: dict[str, Any], name: str, where: str) -> str:
    if name not in record:
        raise DataError(f"{where} has no text under {_missing(name, list(record))}")
    return _string(record[name], name, where)


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} has no text under '{name}'; it holds {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character (a lone surrogate) at {error.start}") from None
    return value


def _missing(name: str, known: list[str]) -> str:
    there = ", ".join(map(str, known[:8])) or "nothing"
    return f"'{name}'; it has {there}{did_you_mean(name, known)}"
