"""`wafergpt prepare`: from text files to verified token shards, streaming, on all cores.

The folder it publishes: `tokenizer.json`, `train/` and, if asked for, `held_out/` with `documents.jsonl` (the
held-out text itself, for baselines). Memory does not grow with the corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.config import to_dict
from wafergpt.data.config import HeldOutMode, PrepareConfig
from wafergpt.data.corpus import Inputs, Piece, read_pieces, resolve
from wafergpt.data.encode_pool import EncodePool
from wafergpt.data.formats import Fields
from wafergpt.data.held_out import Side, split
from wafergpt.data.publish import published, sync_file
from wafergpt.data.shards import Manifest, Source
from wafergpt.data.side_writer import SideWriter
from wafergpt.errors import DataError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.units import KIB

_BATCH_BYTES = 256 * KIB
_BATCH_TEXTS = 4096


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a preparation is."""

    phase: str
    read_bytes: int
    total_bytes: int
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was published."""

    folder: Path
    train: Manifest
    held_out: Manifest | None
    ignored: tuple[Path, ...]
    """Files of given folders that have no format we read."""


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None) -> Prepared:
    """Tokenise and pack the sources of `config` into its output folder.

    Raises DataError, AssetError, StorageError or ConfigError; whatever is raised, no output folder appears.
    """
    inputs = resolve(config.sources, licence=config.licence, offline=config.offline)
    with published(config.output, overwrite=config.overwrite) as work:
        run = _Run(config, inputs, on_progress)
        tokenizer = run.tokenizer()
        tokenizer.save(work)
        sync_file(work / "tokenizer.json")
        manifests = run.encode(tokenizer, work)
    return Prepared(
        folder=config.output,
        train=manifests[Side.TRAIN],
        held_out=manifests.get(Side.HELD_OUT),
        ignored=inputs.ignored,
    )


class _Run:
    """One preparation: where the text is read from and how far it is."""

    def __init__(self, config: PrepareConfig, inputs: Inputs, on_progress: Callable[[Progress], None] | None):
        self._config = config
        self._inputs = inputs
        self._on_progress = on_progress or (lambda _: None)
        self._phase = ""
        self._read_bytes = self._n_tokens = 0

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the config names, trained on the training side only if it is to be trained."""
        config = self._config
        if (size := config.trained_vocab_size) is not None:
            self._phase = "training tokenizer"
            return Tokenizer.train(self._sample(), size)
        return Tokenizer.gpt2() if config.tokenizer == "gpt2" else Tokenizer.load(config.tokenizer)

    def encode(self, tokenizer: Tokenizer, work: Path) -> dict[Side, Manifest]:
        """Write both sides below `work`; returns their manifests, which are written too."""
        self._phase, self._read_bytes = "tokenizing", 0
        sides = (
            [Side.TRAIN] if self._config.held_out.mode is HeldOutMode.NONE else [Side.TRAIN, Side.HELD_OUT]
        )
        outputs = {
            side: SideWriter(
                work / side.value, tokenizer, self._config.shard_tokens, keep_text=side is Side.HELD_OUT
            )
            for side in sides
        }
        texts: deque[list[tuple[Side, Piece]]] = deque()  # the batches in flight, first in first out
        with EncodePool(tokenizer, self._config.n_workers) as pool:
            for arrays in pool.encode(self._batches(texts)):
                for (side, piece), ids in zip(texts.popleft(), arrays, strict=True):
                    outputs[side].add(piece, ids)
                self._n_tokens = sum(output.n_tokens for output in outputs.values())
                self._report()
        for side, output in outputs.items():
            output.finish()
            if output.n_tokens == 0:
                self._refuse_empty(side)
        counts: dict[str, int] = {}
        if Side.HELD_OUT in outputs:
            counts["n_documents_also_in_training"] = outputs[Side.HELD_OUT].n_also_in(outputs[Side.TRAIN])
        manifests = {}
        for side, output in outputs.items():
            output.drop_digests()
            manifests[side] = output.manifest(self._sources(), self._settings(), counts)
            manifests[side].save(work / side.value)
        return manifests

    def _sources(self) -> tuple[Source, ...]:
        return tuple(entry.source for entry in self._inputs.found)

    def _settings(self) -> dict[str, Any]:
        """What decides the result; where it is written and by how many processes does not."""
        settings: dict[str, Any] = to_dict(self._config)
        for name in ("output", "overwrite", "offline", "n_workers", "licence"):
            del settings[name]
        return settings

    def _pieces(self) -> Iterator[tuple[Side, Piece]]:
        fields = Fields(text=self._config.text_field, separator=self._config.document_separator)
        return split(read_pieces(self._inputs, fields, self._count), self._config.held_out)

    def _sample(self) -> Iterator[str]:
        left_bytes = self._config.tokenizer_sample_bytes
        for side, piece in self._pieces():
            if side is Side.TRAIN:
                self._report()
                yield piece.text
                left_bytes -= len(piece.text.encode())
                if left_bytes <= 0:
                    return

    def _batches(self, texts: deque[list[tuple[Side, Piece]]]) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        held: list[tuple[Side, Piece]] = []
        size_bytes = 0
        for side, piece in self._pieces():
            data = piece.text.encode()
            batch.append(data)
            held.append((side, piece))
            size_bytes += len(data)
            if size_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_TEXTS:
                texts.append(held)
                yield batch
                batch, held, size_bytes = [], [], 0
        if batch:
            texts.append(held)
            yield batch

    def _count(self, n_bytes: int) -> None:
        self._read_bytes += n_bytes

    def _report(self) -> None:
        total_bytes = self._inputs.size_bytes
        read_bytes = min(self._read_bytes, total_bytes)
        self._on_progress(
            Progress(
                phase=self._phase, read_bytes=read_bytes, total_bytes=total_bytes, n_tokens=self._n_tokens
            )
        )

    def _refuse_empty(self, side: Side) -> None:
        names = ", ".join(f"'{source}'" for source in self._config.sources)
        if side is Side.HELD_OUT:
            raise DataError(f"{names}: the corpus is too short for the held-out part that was asked for")
        raise DataError(f"{names}: the corpus is empty")
