"""Token shards: raw little-endian integers in files, memory-mapped, described by a manifest with hashes.

A shard set is one folder: `manifest.json` and `shard-00000.bin`, `shard-00001.bin`, … Together the shards
are one long sequence of ids. `ShardWriter` makes such a folder; `ShardSet.open` checks every byte of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wafergpt.config import from_dict, to_dict
from wafergpt.errors import ConfigError, DataError
from wafergpt.tokenizer.encoder import TokenArray, token_dtype
from wafergpt.units import MIB

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_CHECK_BYTES = 8 * MIB


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of ids."""

    file: str
    n_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where text came from and under which licence."""

    name: str
    licence: str = "not stated"
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a shard set holds. `n_text_bytes` is UTF-8 text without the end-of-text tokens."""

    vocab_size: int
    end_of_text_id: int
    tokenizer_sha256: str
    n_tokens: int
    n_documents: int
    n_text_bytes: int
    shards: tuple[Shard, ...]
    sources: tuple[Source, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write `manifest.json` and flush it to the disk."""
        with open(folder / MANIFEST_NAME, "w", encoding="utf-8") as file:
            json.dump(to_dict(self), file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of a shard folder. Raises DataError naming the file."""
        path = folder / MANIFEST_NAME
        try:
            manifest = from_dict(cls, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"'{folder}' holds no prepared data: {MANIFEST_NAME} is missing") from None
        except (OSError, ValueError, ConfigError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        if manifest.format_version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format {manifest.format_version} is not {FORMAT_VERSION}; prepare the data again"
            )
        for shard in manifest.shards:
            if Path(shard.file).name != shard.file:
                raise DataError(f"{path}: shard name {shard.file!r} is not a plain file name")
        if manifest.n_tokens != sum(shard.n_tokens for shard in manifest.shards):
            raise DataError(f"{path} is damaged: its token counts do not add up")
        return manifest


class ShardWriter:
    """Appends ids and rolls over to a new file every `shard_tokens`; hashes as it writes."""

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._shard_tokens = shard_tokens
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0
        folder.mkdir(parents=True)

    def append(self, ids: TokenArray) -> None:
        """Write `ids` (shape [n]) after what is there. Raises DataError for an id outside the vocabulary."""
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise DataError(f"token id {int(ids.max())} is outside the vocabulary of {self._vocab_size}")
        while len(ids):
            if self._file is None:
                self._file = open(self._folder / self._name(), "wb")  # noqa: SIM115 (closed by _close)
            part = ids[: self._shard_tokens - self._in_shard]
            data = part.astype(self._dtype, copy=False).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._in_shard += len(part)
            ids = ids[len(part) :]
            if self._in_shard == self._shard_tokens:
                self._close()

    def finish(self) -> tuple[Shard, ...]:
        """Flush everything to the disk and return the shards."""
        self._close()
        return tuple(self._shards)

    def _name(self) -> str:
        return f"shard-{len(self._shards):05d}.bin"

    def _close(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._shards.append(Shard(file=self._name(), n_tokens=self._in_shard, sha256=self._hash.hexdigest()))
        self._file, self._hash, self._in_shard = None, hashlib.sha256(), 0


class ShardSet:
    """A verified, memory-mapped, read-only sequence of `n_tokens` ids."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Map the shards of `folder` as `manifest` describes them; `open` also verifies them."""
        self.folder = folder
        self.manifest = manifest
        self.dtype = token_dtype(manifest.vocab_size)
        self._maps: list[TokenArray] = [
            np.memmap(folder / s.file, self.dtype, mode="r") for s in manifest.shards
        ]
        self._starts = np.cumsum([0, *(shard.n_tokens for shard in manifest.shards)])

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> ShardSet:
        """Open a shard folder, or the folder `wafergpt prepare` wrote (then its train/ part).

        Every shard's size is checked; with `verify` also its SHA-256 and that no id is outside the
        vocabulary (about a second per gigabyte). Raises DataError naming the file at fault.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"data folder '{folder}' does not exist; make it with 'wafergpt prepare'")
        if not (folder / MANIFEST_NAME).exists() and (folder / "train" / MANIFEST_NAME).exists():
            folder = folder / "train"
        manifest = Manifest.load(folder)
        if manifest.n_tokens == 0:
            raise DataError(f"'{folder}' holds no tokens")
        dtype = token_dtype(manifest.vocab_size)
        for shard in manifest.shards:
            path = folder / shard.file
            _check_size(path, shard.n_tokens * dtype.itemsize)
            if verify:
                _check_content(path, shard.sha256, dtype, manifest.vocab_size)
        return cls(folder, manifest)

    @property
    def n_tokens(self) -> int:
        """Ids in all shards, end-of-text included."""
        return self.manifest.n_tokens

    @property
    def n_text_bytes(self) -> int:
        """UTF-8 bytes of the text these ids encode: the denominator of bits per byte."""
        return self.manifest.n_text_bytes

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer; every id is below it."""
        return self.manifest.vocab_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' hashes and the tokenizer's: equal means the same ids in the same order."""
        lines = [self.manifest.tokenizer_sha256, *(shard.sha256 for shard in self.manifest.shards)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read(self, start: int, n: int) -> TokenArray:
        """A copy of the `n` ids from `start`, across shard borders: shape [n].

        Raises DataError if the range is not inside the set.
        """
        if start < 0 or n < 0 or start + n > self.n_tokens:
            raise DataError(
                f"tokens {start} to {start + n} are outside the {self.n_tokens} of '{self.folder}'"
            )
        out: TokenArray = np.empty(n, self.dtype)
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < n:
            offset = start + done - int(self._starts[index])
            part = self._maps[index][offset : offset + n - done]
            out[done : done + len(part)] = part
            done += len(part)
            index += 1
        return out


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"shard '{path}' is missing") from None
    if size_bytes != expected_bytes:
        kind = "truncated" if size_bytes < expected_bytes else "too long"
        raise DataError(
            f"shard '{path}' is {kind}: {size_bytes} bytes where the manifest says {expected_bytes}"
        )


def _check_content(path: Path, sha256: str, dtype: np.dtype[Any], vocab_size: int) -> None:
    digest = hashlib.sha256()
    largest, position = -1, 0
    with open(path, "rb") as file:
        while block := file.read(_CHECK_BYTES):
            digest.update(block)
            ids = np.frombuffer(block, dtype)
            if largest < vocab_size <= int(ids.max()):
                largest, position = (
                    int(ids.max()),
                    file.tell() // dtype.itemsize - len(ids) + int(ids.argmax()),
                )
    if digest.hexdigest() != sha256:
        raise DataError(
            f"shard '{path}' has changed: its SHA-256 is not the manifest's; prepare the data again"
        )
    if largest >= vocab_size:
        raise DataError(
            f"shard '{path}' holds token id {largest} at {position}, outside the vocabulary of {vocab_size}"
        )
