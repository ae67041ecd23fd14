"""`wafergpt prepare`: text -> held-out split -> tokens in parallel -> verified shards, published by rename.

OUT/{tokenizer.json, train/, held_out/}, each side a manifest and shards; held_out/ also documents.jsonl.

Text streams through in pieces of about a megabyte, with a bounded number of them under way, so memory does
not grow with the corpus. The shards depend on text, tokenizer and split alone, not on the workers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from wafergpt.assets import corpora
from wafergpt.assets.table import get as asset_named
from wafergpt.config import to_dict
from wafergpt.data.config import HeldOutConfig, HeldOutRule, PrepareConfig
from wafergpt.data.corpus import Piece, expand, read_pieces
from wafergpt.data.packing import pack
from wafergpt.data.shards import Manifest, ShardWriter, Source
from wafergpt.errors import ConfigError, DataError, StorageError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import Encoder, TokenArray, token_dtype
from wafergpt.tokenizer.pretokens import pieces as safe_pieces

ASSET_PREFIX = "asset:"
TOKENIZER_NAME = "tokenizer.json"
DOCUMENTS_NAME = "documents.jsonl"  # the held-out text itself, for baselines that read text

_TASK_CHARS = 1 << 20
_TASKS_PER_WORKER = 4

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes of text done, bytes in all or 0)."""


@dataclass(frozen=True, kw_only=True)
class PreparedCorpus:
    """What a prepared folder holds, in a sentence and in figures."""

    folder: Path
    description: str
    licence: str
    vocab_size: int
    n_train_tokens: int
    n_held_out_tokens: int
    n_train_bytes: int
    n_held_out_bytes: int
    n_documents: int


@dataclass(frozen=True)
class _Part:
    """A piece and the side of the split it belongs to."""

    piece: Piece
    held_out: bool


def prepare(config: PrepareConfig, progress: Progress | None = None) -> PreparedCorpus:
    """Write the folder `config.out`, which must not exist yet.

    Raises DataError for unreadable, empty or too little text, ConfigError for the tokenizer or the folder,
    AssetError, StorageError; after each, nothing is left of the folder.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ConfigError(f"'{config.out}' exists already; choose another folder or remove it")
    texts = _Texts(config, progress or (lambda *_: None))
    scratch = config.out.with_name(f".{config.out.name}.{os.getpid()}.partial")
    try:
        scratch.mkdir(parents=True)
        tokenizer = _tokenizer(config, texts)
        tokenizer.save(scratch / TOKENIZER_NAME)
        result = _write_sides(config, texts, tokenizer, scratch)
        if config.out.is_dir():
            config.out.rmdir()
        os.rename(scratch, config.out)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write '{config.out}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


class _Texts:
    """The corpus as split pieces, readable twice: to train a tokenizer, then to encode."""

    def __init__(self, config: PrepareConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self.assets = [s.removeprefix(ASSET_PREFIX) for s in config.sources if s.startswith(ASSET_PREFIX)]
        self.files = expand([s for s in config.sources if not s.startswith(ASSET_PREFIX)])
        self.total_bytes = sum(file.stat().st_size for file in self.files)

    def sources(self) -> tuple[Source, ...]:
        """What the manifest says about the origin."""
        files = [Source(name=file.name, size_bytes=file.stat().st_size) for file in self.files]
        assets = [Source(name=name, licence=asset_named(name).licence) for name in self.assets]
        return (*assets, *files)

    def describe(self) -> tuple[str, str]:
        """(description, licence)."""
        names = [asset_named(name).summary for name in self.assets] + [file.name for file in self.files[:3]]
        more = f" and {len(self.files) - 3} more files" if len(self.files) > 3 else ""
        licences = [asset_named(name).licence for name in self.assets]
        return ", ".join(names) + more, ", ".join(licences) or "not stated"

    def parts(self, doing: str) -> Iterator[_Part]:
        """Every piece with its side; reports progress."""
        done_bytes = 0
        for part in split(self._pieces(), self._config.held_out):
            done_bytes += len(part.piece.text.encode("utf-8", "surrogatepass"))
            yield part
            self._progress(doing, done_bytes, 0 if self.assets else self.total_bytes)

    def _pieces(self) -> Iterator[Piece]:
        for name in self.assets:
            for document in corpora.documents(name):
                yield Piece(text=document.text, ends_document=True, origin=name)
        yield from read_pieces(self.files, self._config.text_key)


def split(pieces: Iterable[Piece], rule: HeldOutConfig) -> Iterator[_Part]:
    """Put each piece on its side. Blocks are cut within documents and numbered through the whole corpus."""
    number = 0  # of the current document or block
    if rule.rule is not HeldOutRule.BLOCKS:
        for piece in pieces:
            held_out = rule.rule is HeldOutRule.DOCUMENTS and number % rule.every == rule.every - 1
            yield _Part(piece, held_out)
            number += piece.ends_document
        return
    filled = 0  # characters of the current block
    previous: _Part | None = None
    for piece in pieces:
        start = 0
        while start < len(piece.text) or (start == 0 and piece.ends_document):
            text = piece.text[start : start + rule.block_chars - filled]
            start, filled = start + len(text), filled + len(text)
            held_out = number % rule.every == rule.every - 1
            if previous is not None:  # a change of side ends the document
                ends = previous.piece.ends_document or previous.held_out != held_out
                yield replace(previous, piece=replace(previous.piece, ends_document=ends))
            ends = piece.ends_document and start == len(piece.text)
            # One held-out block is one document, even when two of them should ever meet.
            full = filled == rule.block_chars
            previous = _Part(replace(piece, text=text, ends_document=ends or (held_out and full)), held_out)
            if full or ends:
                number, filled = number + 1, 0
            if ends:
                break
    if previous is not None:
        yield previous


def _tokenizer(config: PrepareConfig, texts: _Texts) -> Tokenizer:
    kind, _, size = config.tokenizer.partition(":")
    if config.tokenizer == "gpt2":
        return Tokenizer.gpt2()
    if kind == "train":
        if not size.isdecimal():
            raise ConfigError(f"--tokenizer {config.tokenizer!r}: write train:SIZE, for example train:4096")
        learned = (part.piece.text for part in texts.parts("learning the tokenizer") if not part.held_out)
        return Tokenizer.train(learned, int(size))
    return Tokenizer.load(Path(config.tokenizer))


class _Side:
    """The train or the held-out part while it is written."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, keeps_text: bool) -> None:
        self.folder = folder
        self._tokenizer = tokenizer
        self._writer = ShardWriter(folder, tokenizer.vocab_size, shard_tokens)
        path = folder / DOCUMENTS_NAME
        self._text: TextIO | None = path.open("w", encoding="utf-8") if keeps_text else None
        self._parts: list[str] = []
        self._open = False
        self.n_tokens = self.n_documents = self.n_text_bytes = 0

    def append(self, piece: Piece, ids: TokenArray) -> None:
        """Add a piece and, where it ends its document, the end-of-text id."""
        pairs = [(ids, piece.ends_document)]
        if self._open and not len(ids) and piece.ends_document:  # an empty last piece still ends the document
            self._write(np.array([self._tokenizer.end_of_text_id], ids.dtype))
        for packed in pack(pairs, self._tokenizer.end_of_text_id):
            self._write(packed)
        self._open = (self._open or len(ids) > 0) and not piece.ends_document
        self.n_text_bytes += len(piece.text.encode("utf-8"))
        self.n_documents += piece.ends_document
        if self._text is not None:
            self._parts.append(piece.text)
            if piece.ends_document:
                self._text.write(json.dumps({"text": "".join(self._parts)}, ensure_ascii=False) + "\n")
                self._parts = []

    def _write(self, ids: TokenArray) -> None:
        self._writer.append(ids)
        self.n_tokens += len(ids)

    def finish(self, sources: tuple[Source, ...], settings: dict[str, Any]) -> None:
        """Flush and write the manifest."""
        if self._open:
            self._write(np.array([self._tokenizer.end_of_text_id], token_dtype(self._tokenizer.vocab_size)))
        if self._text is not None:
            self._text.flush()
            os.fsync(self._text.fileno())
            self._text.close()
        Manifest(
            vocab_size=self._tokenizer.vocab_size,
            end_of_text_id=self._tokenizer.end_of_text_id,
            tokenizer_sha256=self._tokenizer.sha256,
            n_tokens=self.n_tokens,
            n_documents=self.n_documents,
            n_text_bytes=self.n_text_bytes,
            shards=self._writer.finish(),
            sources=sources,
            settings=settings,
        ).save(self.folder)


def _write_sides(config: PrepareConfig, texts: _Texts, tokenizer: Tokenizer, scratch: Path) -> PreparedCorpus:
    train = _Side(scratch / "train", tokenizer, config.shard_tokens, keeps_text=False)
    sides = [train]
    if config.held_out.rule is not HeldOutRule.NONE:
        sides.append(_Side(scratch / "held_out", tokenizer, config.shard_tokens, keeps_text=True))
    for part, ids in _encoded(texts.parts("tokenising"), tokenizer, config.workers):
        sides[part.held_out].append(part.piece, ids)
    for side, name in zip(sides, ("training", "held-out"), strict=False):
        if side.n_tokens == 0:
            raise DataError(f"the {name} part of the corpus is empty; give more text or another split")
    settings = {k: v for k, v in to_dict(config).items() if k not in ("out", "sources", "workers")}
    for side in sides:
        side.finish(texts.sources(), settings)
    description, licence = texts.describe()
    return PreparedCorpus(
        folder=config.out,
        description=description,
        licence=licence,
        vocab_size=tokenizer.vocab_size,
        n_train_tokens=train.n_tokens,
        n_held_out_tokens=sum(side.n_tokens for side in sides[1:]),
        n_train_bytes=train.n_text_bytes,
        n_held_out_bytes=sum(side.n_text_bytes for side in sides[1:]),
        n_documents=sum(side.n_documents for side in sides),
    )


def _encoded(
    parts: Iterator[_Part], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[_Part, TokenArray]]:
    """Each part with its ids, in order, encoded by `workers` processes, a bounded number of tasks ahead."""
    workers = workers or os.cpu_count() or 1
    dtype = token_dtype(tokenizer.vocab_size)
    tasks = _tasks(parts)
    if workers == 1:
        _start_worker(tokenizer.to_bytes())
        for task in tasks:
            yield from zip(task, _ids(_encode_texts([part.piece.text for part in task]), dtype), strict=True)
        return
    # spawn, not fork: the tokenizer library has threads of its own
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer.to_bytes(),)) as pool:
        waiting: deque[tuple[list[_Part], Future[list[bytes]]]] = deque()
        for task in tasks:
            waiting.append((task, pool.submit(_encode_texts, [part.piece.text for part in task])))
            if len(waiting) > _TASKS_PER_WORKER * workers:
                done, future = waiting.popleft()
                yield from zip(done, _ids(future.result(), dtype), strict=True)
        for done, future in waiting:
            yield from zip(done, _ids(future.result(), dtype), strict=True)


def _ids(encoded: list[bytes], dtype: np.dtype[Any]) -> Iterator[TokenArray]:
    return (np.frombuffer(data, dtype) for data in encoded)


def _tasks(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    """Groups of about `_TASK_CHARS` characters; a longer part is cut where encoding does not notice."""
    task: list[_Part] = []
    size_chars = 0
    for part in parts:
        cut = list(safe_pieces(part.piece.text, _TASK_CHARS)) or [""]
        for i, text in enumerate(cut):
            ends = part.piece.ends_document and i == len(cut) - 1
            task.append(replace(part, piece=replace(part.piece, text=text, ends_document=ends)))
            size_chars += len(text)
            if size_chars >= _TASK_CHARS:
                yield task
                task, size_chars = [], 0
    if task:
        yield task


_encoder: Encoder | None = None  # of a worker process, made once by _start_worker


def _start_worker(tokenizer: bytes) -> None:
    global _encoder
    _encoder = Encoder(Tokenizer.from_bytes(tokenizer))


def _encode_texts(texts: list[str]) -> list[bytes]:
    assert _encoder is not None, "_start_worker runs first in every worker"
    return [_encoder.encode_bytes(text) for text in texts]
