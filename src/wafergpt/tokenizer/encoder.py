"""Encoding for throughput: a cache from pre-token to ids in front of the `tokenizers` library.

Natural text repeats its words, and byte-pair encoding treats every pre-token on its own. So the ids of a
text are the joined ids of its pre-tokens, and most pre-tokens have been seen before. Splitting with one
regular expression and joining cached bytes runs at two to three times the library's speed on one core
(benchmarks/prepare.py); the result is the library's, id for id (tests/parity/test_pretokens.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.pretokens import is_stable, pieces, split

TokenArray = npt.NDArray[Any]
"""Ids, shape [n], uint16 or uint32: see `token_dtype`."""

_PIECE_CHARS = 1 << 14  # one unusual character sends at most this much text down the slower path
_CACHE_ENTRIES = 1 << 17  # about 30 MB of short strings; keeps memory flat on any corpus
_CACHED_WORD_CHARS = 48  # longer pre-tokens (encoded data, rules of dashes) seldom come back
# Where words do not repeat (tables of numbers, random ids) the cache costs more than it saves: after a piece
# with so large a share of misses, the library does some pieces alone.
_MISS_SHARE = 0.15
_WARM_ENTRIES = 1 << 15  # before that many entries misses mean nothing
_DETOUR_PIECES = 15


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 for a vocabulary below 65,536 entries, uint32 otherwise; little-endian."""
    return np.dtype("<u2") if vocab_size < 1 << 16 else np.dtype("<u4")


class _WordCache(dict[str, bytes]):
    """Pre-token -> its ids as bytes; asks the library on a miss and forgets everything when full."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self.n_misses = 0

    def __missing__(self, word: str) -> bytes:
        self.n_misses += 1
        ids = np.array(
            self._tokenizer.inner.encode(word, add_special_tokens=False).ids, self._dtype
        ).tobytes()
        if len(word) <= _CACHED_WORD_CHARS:
            if len(self) >= _CACHE_ENTRIES:
                self.clear()
            self[word] = ids
        return ids


class Encoder:
    """Encodes many texts with one tokenizer; the same ids as `Tokenizer.encode`, several times faster."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._cache = _WordCache(tokenizer)
        self._detour = 0  # pieces still to be left to the library

    def encode(self, text: str) -> TokenArray:
        """The ids of `text` as a read-only array of `dtype`. Raises DataError for a lone surrogate."""
        return np.frombuffer(self.encode_many([text])[0], self.dtype)

    def encode_many(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text as little-endian `dtype`. Raises DataError for a lone surrogate."""
        parts: list[list[bytes]] = [[] for _ in texts]
        unusual: list[str] = []  # pieces for the library, all at once: it has threads of its own
        places: list[tuple[list[bytes], int]] = []
        for text, encoded in zip(texts, parts, strict=True):
            for piece in pieces(text, _PIECE_CHARS):
                if self._detour == 0 and is_stable(piece):
                    encoded.append(self._from_cache(piece))
                else:
                    self._detour = max(0, self._detour - 1)
                    places.append((encoded, len(encoded)))
                    unusual.append(piece)
                    encoded.append(b"")
        for (encoded, index), ids in zip(places, self._tokenizer.encode_batch(unusual), strict=True):
            encoded[index] = np.array(ids, self.dtype).tobytes()
        return [b"".join(encoded) for encoded in parts]

    def _from_cache(self, piece: str) -> bytes:
        words = split(piece)
        before = self._cache.n_misses
        ids = b"".join(map(self._cache.__getitem__, words))
        if self._cache.n_misses - before > _MISS_SHARE * len(words) and len(self._cache) > _WARM_ENTRIES:
            self._detour = _DETOUR_PIECES
        return ids
