"""One side of a prepared corpus while it is written: shards, counts, document digests, held-out text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.data.corpus import Piece
from wafergpt.data.packing import Packer
from wafergpt.data.publish import sync_file
from wafergpt.data.shards import Manifest, Shard, ShardWriter, Source
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import TokenArray

TEXT_NAME = "documents.jsonl"
_DIGESTS_NAME = "digests.partial"
_DIGEST = np.dtype("<u8")  # 8 bytes of SHA-256: a false match among 1e8 documents has odds of 1 in 3,700
_DIGESTS_PER_CHUNK = 1 << 20


class SideWriter:
    """Receives pieces with their ids, in order, and writes everything below `folder`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, *, keep_text: bool) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._writer = ShardWriter(folder, tokenizer.vocab_size, shard_tokens)
        self._packer = Packer(self._writer.append, tokenizer.end_of_text_id)
        self._shards: tuple[Shard, ...] = ()
        self._text_bytes = self._document_bytes = self._n_empty = 0
        self._digest = hashlib.sha256()
        self._digests = open(folder / _DIGESTS_NAME, "wb")  # noqa: SIM115 (closed by finish)
        self._texts = open(folder / TEXT_NAME, "w", encoding="utf-8") if keep_text else None  # noqa: SIM115

    @property
    def n_tokens(self) -> int:
        """Ids written so far, end-of-text included."""
        return self._packer.n_tokens

    def add(self, piece: Piece, ids: TokenArray) -> None:
        """The next piece of text and its ids (shape [n])."""
        data = piece.text.encode()
        if self._texts is not None and data:
            if self._document_bytes == 0:
                self._texts.write(f'{{"origin": {json.dumps(piece.origin, ensure_ascii=False)}, "text": "')
            self._texts.write(json.dumps(piece.text, ensure_ascii=False)[1:-1])
        self._digest.update(data)
        self._document_bytes += len(data)
        self._packer.add(ids, ends_document=piece.ends_document)
        if piece.ends_document:
            self._end_document()

    def finish(self) -> None:
        """Flush all files to the disk."""
        self._shards = self._writer.finish()
        self._digests.close()
        if self._texts is not None:
            self._texts.close()
            sync_file(self._folder / TEXT_NAME)

    def n_also_in(self, other: SideWriter) -> int:
        """How many documents of this side are, byte for byte, also documents of the other."""
        own = np.fromfile(self._folder / _DIGESTS_NAME, _DIGEST)
        found = np.zeros(len(own), bool)
        with open(other._folder / _DIGESTS_NAME, "rb") as file:
            while len(chunk := np.fromfile(file, _DIGEST, _DIGESTS_PER_CHUNK)):
                found |= np.isin(own, chunk)
        return int(found.sum())

    def drop_digests(self) -> None:
        """Remove the digests; they serve `n_also_in` alone."""
        (self._folder / _DIGESTS_NAME).unlink()

    def manifest(
        self, sources: tuple[Source, ...], settings: dict[str, Any], counts: dict[str, int]
    ) -> Manifest:
        """The manifest of this side."""
        return Manifest(
            vocab_size=self._tokenizer.vocab_size,
            end_of_text_id=self._tokenizer.end_of_text_id,
            tokenizer_sha256=self._tokenizer.sha256,
            n_tokens=self._packer.n_tokens,
            n_documents=self._packer.n_documents,
            n_text_bytes=self._text_bytes,
            shards=self._shards,
            sources=sources,
            settings=settings,
            counts={"n_empty_documents": self._n_empty, **counts},
        )

    def _end_document(self) -> None:
        if self._document_bytes:
            self._digests.write(self._digest.digest()[: _DIGEST.itemsize])
            if self._texts is not None:
                self._texts.write('"}\n')
        else:
            self._n_empty += 1
        self._text_bytes += self._document_bytes
        self._digest, self._document_bytes = hashlib.sha256(), 0
