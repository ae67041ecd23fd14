"""`wafergpt prepare`: text -> held-out split -> tokens in parallel -> verified shards, published by rename.

OUT/{tokenizer.json, train/, held_out/}, each side a manifest and shards; held_out/ also documents.jsonl.

Text streams through in pieces of about a megabyte, with a bounded number of them under way, so memory does
not grow with the corpus. The shards depend on text, tokenizer and split alone, not on the workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from wafergpt.config import to_dict
from wafergpt.data.config import HeldOutMode, PrepareConfig
from wafergpt.data.corpus import Inputs, names_of, read_pieces, resolve
from wafergpt.data.encode_pool import EncodePool
from wafergpt.data.formats import Fields
from wafergpt.data.held_out import Part, split
from wafergpt.data.publish import published, sync_file
from wafergpt.data.shards import Manifest
from wafergpt.data.side_writer import SideWriter
from wafergpt.errors import DataError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.units import KIB

_BATCH_BYTES = 256 * KIB
_BATCH_TEXTS = 4096


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a preparation is; `read_bytes` and `total_bytes` are of the sources as they lie on the disk."""

    phase: str
    read_bytes: int
    total_bytes: int
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was published. The manifests' `counts` tell what was left out and what is on both sides."""

    folder: Path
    train: Manifest
    held_out: Manifest | None
    ignored: tuple[Path, ...]
    """Files found in folders or by patterns whose kind is not read."""


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None) -> Prepared:
    """Write the folder `config.output`, which must be absent or empty unless `config.overwrite`.

    Raises DataError for unreadable, empty or too little text, ConfigError for the tokenizer or the folder,
    AssetError, StorageError; after each, nothing is left of the folder, or the old one is untouched.
    """
    with published(config.output, overwrite=config.overwrite) as work:
        inputs = resolve(config.sources, licence=config.licence, offline=config.offline)
        preparation = _Preparation(config, inputs, on_progress or (lambda _: None))
        tokenizer = preparation.tokenizer()
        sync_file(tokenizer.save(work))
        return preparation.write(tokenizer, work)


class _Preparation:
    """One run: where the text is read from and how far it is."""

    def __init__(
        self, config: PrepareConfig, inputs: Inputs, on_progress: Callable[[Progress], None]
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._on_progress = on_progress
        self._read_bytes = self._n_tokens = 0

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the config names; one that is trained sees the training side only."""
        config = self._config
        if config.tokenizer == "gpt2":
            return Tokenizer.gpt2(offline=config.offline)
        if config.trained_vocab_size is None:
            return Tokenizer.load(config.tokenizer)
        return Tokenizer.train(self._lessons(), config.trained_vocab_size)

    def write(self, tokenizer: Tokenizer, work: Path) -> Prepared:
        """Encode everything and write both sides below `work`."""
        shard_tokens = self._config.shard_tokens
        sides = [SideWriter(work / "train", tokenizer, shard_tokens, keep_text=False)]
        if self._config.held_out.mode is not HeldOutMode.NONE:
            sides.append(SideWriter(work / "held_out", tokenizer, shard_tokens, keep_text=True))
        under_way: deque[list[Part]] = deque()
        with EncodePool(tokenizer, self._config.n_workers) as pool:
            for arrays in pool.encode(self._batches(under_way)):
                for part, ids in zip(under_way.popleft(), arrays, strict=True):
                    sides[part.held_out].append(part.piece, ids)
                self._n_tokens = sum(side.n_tokens for side in sides)
        if sides[0].n_tokens == 0:
            self._refuse_empty()
        if sides[-1].n_tokens == 0:
            raise DataError(
                f"{names_of(self._config.sources)}: too little text for a held-out part by this rule; "
                f"use smaller blocks (--held-out blocks:20:500) or none"
            )
        return self._finish(sides)

    def _finish(self, sides: list[SideWriter]) -> Prepared:
        for side in sides:
            side.close()
        n_repeated = sum(side.n_also_in(sides[0]) for side in sides[1:])
        settings = to_dict(self._config)
        for name in ("output", "n_workers", "overwrite", "offline", "licence"):  # they decide nothing
            del settings[name]
        sources = tuple(entry.source for entry in self._inputs.found)
        manifests = [side.finish(sources, settings, {"n_repeated_documents": n_repeated}) for side in sides]
        return Prepared(
            folder=self._config.output,
            train=manifests[0],
            held_out=manifests[1] if len(manifests) > 1 else None,
            ignored=self._inputs.ignored,
        )

    def _parts(self, doing: str) -> Iterator[Part]:
        """Every piece with its side, in order; reports progress."""
        fields = Fields(text=self._config.text_field, separator=self._config.document_separator)
        self._read_bytes = 0
        total_bytes = self._inputs.size_bytes
        for part in split(read_pieces(self._inputs, fields, self._count), self._config.held_out):
            yield part
            self._report(doing, min(self._read_bytes, total_bytes))
        self._report(doing, total_bytes)

    def _report(self, doing: str, read_bytes: int) -> None:
        total_bytes = self._inputs.size_bytes
        self._on_progress(
            Progress(phase=doing, read_bytes=read_bytes, total_bytes=total_bytes, n_tokens=self._n_tokens)
        )

    def _count(self, n_bytes: int) -> None:
        self._read_bytes += n_bytes

    def _lessons(self) -> Iterator[str]:
        learned_bytes = 0
        for part in self._parts("learning the tokenizer"):
            if not part.held_out:
                learned_bytes += len(part.piece.text.encode())
                yield part.piece.text
                if learned_bytes >= self._config.tokenizer_bytes:
                    return
        if learned_bytes == 0:
            self._refuse_empty()

    def _batches(self, under_way: deque[list[Part]]) -> Iterator[list[bytes]]:
        """Texts in groups of about `_BATCH_BYTES`; their parts wait in `under_way` for the ids."""
        batch: list[bytes] = []
        parts: list[Part] = []
        size_bytes = 0
        for part in self._parts("tokenising"):
            data = part.piece.text.encode()
            batch.append(data)
            parts.append(part)
            size_bytes += len(data)
            if size_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_TEXTS:
                under_way.append(parts)
                yield batch
                batch, parts, size_bytes = [], [], 0
        if batch:
            under_way.append(parts)
            yield batch

    def _refuse_empty(self) -> NoReturn:
        raise DataError(f"the corpus is empty: there is no text in {names_of(self._config.sources)}")
