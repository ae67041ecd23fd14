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
from wafergpt.data.shards import Manifest, ShardWriter, Source
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import TokenArray

DOCUMENTS_NAME = "documents.jsonl"  # the held-out text itself, for baselines that read text
_DIGESTS_NAME = "digests.partial"
_DIGEST = np.dtype("<u8")  # 8 bytes of SHA-256: one false match among 1e8 documents has odds of 1 in 3,700
_DIGESTS_PER_CHUNK = 1 << 20


class SideWriter:
    """Receives pieces with their ids, in order, and writes everything below `folder`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, *, keep_text: bool) -> None:
        self.folder = folder
        self._tokenizer = tokenizer
        self._writer = ShardWriter(folder, tokenizer.vocab_size, shard_tokens)
        self._packer = Packer(self._writer.append, tokenizer.end_of_text_id)
        self._document_bytes = 0
        self._digest = hashlib.sha256()
        self._digests = open(folder / _DIGESTS_NAME, "wb")  # noqa: SIM115 (closed by close)
        self._texts = open(folder / DOCUMENTS_NAME, "w", encoding="utf-8") if keep_text else None  # noqa: SIM115
        self.n_text_bytes = self.n_empty = 0

    @property
    def n_tokens(self) -> int:
        """Ids written so far, end-of-text included."""
        return self._packer.n_tokens

    @property
    def n_documents(self) -> int:
        """Documents that have ended so far, empty ones not counted."""
        return self._packer.n_documents

    def append(self, piece: Piece, ids: TokenArray) -> None:
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

    def close(self) -> None:
        """Close the files beside the shards; nothing more is appended."""
        self._digests.close()
        if self._texts is not None:
            self._texts.close()

    def n_also_in(self, other: SideWriter) -> int:
        """How many documents of this closed side are, byte for byte, also documents of the other."""
        own = np.fromfile(self.folder / _DIGESTS_NAME, _DIGEST)
        found = np.zeros(len(own), bool)
        with open(other.folder / _DIGESTS_NAME, "rb") as file:
            while len(chunk := np.fromfile(file, _DIGEST, _DIGESTS_PER_CHUNK)):
                found |= np.isin(own, chunk)
        return int(found.sum())

    def finish(
        self, sources: tuple[Source, ...], settings: dict[str, Any], counts: dict[str, int]
    ) -> Manifest:
        """Flush everything to the disk, the manifest last."""
        (self.folder / _DIGESTS_NAME).unlink()
        if self._texts is not None:
            sync_file(self.folder / DOCUMENTS_NAME)
        manifest = Manifest(
            vocab_size=self._tokenizer.vocab_size,
            end_of_text_id=self._tokenizer.end_of_text_id,
            tokenizer_sha256=self._tokenizer.sha256,
            n_tokens=self.n_tokens,
            n_documents=self.n_documents,
            n_text_bytes=self.n_text_bytes,
            shards=self._writer.finish(),
            sources=sources,
            settings=settings,
            counts={"n_empty_documents": self.n_empty, **counts},
        )
        manifest.save(self.folder)
        return manifest

    def _end_document(self) -> None:
        if self._document_bytes:
            self._digests.write(self._digest.digest()[: _DIGEST.itemsize])
            if self._texts is not None:
                self._texts.write('"}\n')
        else:
            self.n_empty += 1
        self.n_text_bytes += self._document_bytes
        self._digest, self._document_bytes = hashlib.sha256(), 0
