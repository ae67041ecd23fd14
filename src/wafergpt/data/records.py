"""Labelled data as rows: JSON lines, JSON, CSV, TSV, Parquet, Arrow, and folders of them split by name.

A folder is what `datasets.save_to_disk` writes, what a hub repository holds, or files named by split;
`asset:NAME` is a data set of `assets.labelled`.
Rows keep the columns of the file; `tasks.columns` says which of them a task needs.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from wafergpt.assets import labelled
from wafergpt.data.corpus import ASSET_PREFIX
from wafergpt.data.streams import COMPRESSIONS, lines
from wafergpt.errors import DataError, MissingDependencyError, did_you_mean, shown

Row = dict[str, Any]

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_WORDS = {"train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
          "dev": VALIDATION, "test": TEST, "testing": TEST}  # fmt: skip
_LARGEST_FIELD = 1 << 30


def read_records(path: Path | str, split: str = TRAIN) -> list[Row]:
    """All rows of a file, or of one split of a folder or asset; a file has but one, whatever is asked.

    Raises DataError naming file and line, MissingDependencyError for Parquet and Arrow without pyarrow,
    AssetError.
    """
    if str(path).startswith(ASSET_PREFIX):
        return labelled.load(str(path).removeprefix(ASSET_PREFIX), split)
    path = Path(path)
    files = [path] if path.is_file() else splits_of(path).get(split)
    if not files:
        found = ", ".join(splits_of(path)) or "none"
        raise DataError(f"'{path}' has no split '{split}'; it has {found}{did_you_mean(split, SPLITS)}")
    return [row for file in files for row in _reader(file)(file)]


def splits_of(path: Path | str) -> dict[str, list[Path]]:
    """Split -> its files, in order (none of an asset). A file is a train split. Raises DataError."""
    if str(path).startswith(ASSET_PREFIX):
        return {split: [] for split in SPLITS}
    path = Path(path)
    if path.is_file():
        return {TRAIN: [path]}
    if not path.is_dir():
        raise DataError(f"'{path}' does not exist")
    files = sorted(
        p for p in path.rglob("*") if p.is_file() and _suffix(p) in _READERS and not _is_side_file(p)
    )
    if not files:
        raise DataError(f"folder '{path}' holds no data: {KINDS}")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file.relative_to(path)), []).append(file)
    return {split: found[split] for split in SPLITS if split in found}


def _split_of(path: Path) -> str:
    """By the first word of the file's name or of a folder's that is a split's; else training."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return TRAIN


def _is_side_file(path: Path) -> bool:
    """What `datasets` writes beside its data, hidden files, and its cache."""
    names = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
    return path.name in names or path.name.startswith((".", "cache-"))


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _reader(path: Path) -> Callable[[Path], Iterable[Row]]:
    suffix = _suffix(path)
    if suffix not in _READERS:
        raise DataError(f"'{path}' is of no kind that can be read as examples: {KINDS}")
    return _READERS[suffix]


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in lines(path, lambda _: None):
        if line.strip():
            yield _object(_parsed(line, f"'{path}' line {number}"), f"'{path}' line {number}")


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, {"data": list}, or SQuAD's articles of paragraphs of questions."""
    text = "".join(line for _, line in lines(path, lambda _: None))
    value = _parsed(text, f"'{path}'")
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f"'{path}' holds no list of examples, nor an object with such a list under 'data'")
    for number, item in enumerate(value, start=1):
        row = _object(item, f"'{path}' item {number}")
        if isinstance(row.get("paragraphs"), list):
            yield from _squad(row, f"'{path}' article {number}")
        else:
            yield row


def _squad(article: Row, where: str) -> Iterator[Row]:
    for paragraph in article["paragraphs"]:
        for asked in _object(paragraph, where).get("qas") or []:
            asked = _object(asked, where)
            answers = asked.get("answers") or []
            yield {
                "id": asked.get("id"),
                "title": article.get("title"),
                "context": paragraph.get("context"),
                "question": asked.get("question"),
                "answers": {
                    "text": [answer.get("text") for answer in answers],
                    "answer_start": [answer.get("answer_start") for answer in answers],
                },
            }


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where} is not JSON: {reason}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object with columns but {shown(value)}")
    return value


def _separated(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LARGEST_FIELD)
    dialect = "excel-tab" if _suffix(path) == ".tsv" else "excel"
    rows = csv.DictReader(
        (line for _, line in lines(path, lambda _: None)), dialect=dialect, strict=True, restkey="\0more"
    )
    try:
        for row in rows:
            if "\0more" in row or None in row.values():
                raise DataError(
                    f"'{path}' line {rows.line_num}: the row has not as many fields as the header"
                )
            yield dict(row)
    except csv.Error as error:
        raise DataError(f"'{path}' line {rows.reader.line_num} is not CSV: {error}") from None


def _arrow(path: Path) -> Iterator[Row]:
    """Parquet, or Arrow as a stream or a file; class labels of `datasets` come with their names."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            f"reading '{path}' needs pyarrow: pip install 'wafergpt[data]'"
        ) from None
    try:
        if _suffix(path) == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
                table = opened(source).read_all()
        names = _class_names((table.schema.metadata or {}).get(b"huggingface"))
        for row in table.to_pylist():
            yield {name: _named(value, names.get(name)) for name, value in row.items()}
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from None


def _class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """Column -> names of its classes, from what `datasets` writes into a table's schema."""
    try:
        features = json.loads(metadata or b"{}")["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _named(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _arrow,
    ".arrow": _arrow,
}
KINDS = f"{', '.join(_READERS)} (text formats also as .gz and .zst)"
