"""The model run by PyTorch as it is written: the reference that every other backend meets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from wafergpt.backends.backend import Capacity, Chunk, ChunkResult
from wafergpt.backends.pages import PageLedger
from wafergpt.config import require
from wafergpt.model.cache import KVCache
from wafergpt.model.gpt import GPT
from wafergpt.model.inputs import check_ids

# torch keeps a whole window for every sequence and no pages: they are counted, as the Protocol promises.
_PAGE_TOKENS = 16
_DEFAULT_WINDOWS = 16


class TorchEager:
    """A `Backend` over one `GPT`, on whatever device and in whatever dtype the model is.

    The chunks of a step run one after the other, so what else is in the step changes nothing; how a prompt is
    cut changes the order of float sums, so rows may then differ in their last bits.
    """

    batch_invariant = False

    def __init__(self, model: GPT, *, n_pages: int | None = None) -> None:
        """`n_pages` of 16 positions; None: sixteen full windows."""
        self.model = model.eval()
        pages_per_window = -(-model.config.max_seq_len // _PAGE_TOKENS)
        n_pages = _DEFAULT_WINDOWS * pages_per_window if n_pages is None else n_pages
        require(n_pages >= 1, f"n_pages = {n_pages} must be at least 1")
        self.capacity = Capacity(page_tokens=_PAGE_TOKENS, n_pages=n_pages)
        self._pages = PageLedger(self.capacity)
        self._sequences: dict[int, KVCache] = {}
        self._handles = itertools.count()

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    @property
    def d_model(self) -> int:
        return self.model.config.d_model

    def open(self) -> int:
        """See `Backend.open`."""
        handle, cache = next(self._handles), self._new_cache()
        self._pages.open(handle)
        self._sequences[handle] = cache
        return handle

    def fork(self, sequence: int, n_tokens: int) -> int:
        """See `Backend.fork`. The positions are copied."""
        origin = _get(self._sequences, sequence)
        require(
            0 <= n_tokens <= origin.length,
            f"{origin.length} tokens are held, {n_tokens} cannot be taken over",
        )
        self._pages.check(int(n_tokens % _PAGE_TOKENS > 0))
        handle, cache = next(self._handles), self._new_cache()
        cache.keys[:, :, :, :n_tokens] = origin.keys[:, :, :, :n_tokens]
        cache.values[:, :, :, :n_tokens] = origin.values[:, :, :, :n_tokens]
        cache.advance(n_tokens, None)
        self._pages.fork(sequence, handle, n_tokens)
        self._sequences[handle] = cache
        return handle

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """See `Backend.run`."""
        require(len({c.sequence for c in chunks}) == len(chunks), "a sequence is named twice in one step")
        caches = [_get(self._sequences, chunk.sequence) for chunk in chunks]
        ids = [self._check(chunk, cache) for chunk, cache in zip(chunks, caches, strict=True)]
        lengths = [cache.length + len(chunk.token_ids) for chunk, cache in zip(chunks, caches, strict=True)]
        self._pages.check(
            sum(self._pages.n_needed(c.sequence, n) for c, n in zip(chunks, lengths, strict=True))
        )
        held = [cache.length for cache in caches]
        try:
            results = [self._run(c, cache, i) for c, cache, i in zip(chunks, caches, ids, strict=True)]
        except BaseException:
            for cache, length in zip(caches, held, strict=True):
                cache.length = length
            raise
        for chunk, length in zip(chunks, lengths, strict=True):
            self._pages.grow(chunk.sequence, length)
        return results

    def release(self, sequence: int) -> None:
        """See `Backend.release`."""
        _get(self._sequences, sequence)
        del self._sequences[sequence]
        self._pages.release(sequence)

    def _new_cache(self) -> KVCache:
        weight = self.model.wte.weight
        return KVCache(self.model.config, 1, dtype=weight.dtype, device=weight.device)

    def _check(self, chunk: Chunk, cache: KVCache) -> Tensor:
        """The chunk's ids [1, T], once it is known to be one that can be run (memory aside)."""
        n_new = len(chunk.token_ids)
        require(n_new >= 1, "a chunk needs at least one token")
        require(0 <= chunk.n_logits <= n_new, f"n_logits = {chunk.n_logits} is not in 0..{n_new}")
        self._check_room(cache, n_new)
        ids = torch.tensor([list(chunk.token_ids)])
        check_ids("token id", ids, self.vocab_size, "the vocabulary")
        return ids.to(cache.keys.device)

    def _run(self, chunk: Chunk, cache: KVCache, ids: Tensor) -> ChunkResult:
        with torch.no_grad():
            output = self.model(ids, cache=cache, n_logits=chunk.n_logits)
        logits = None if output.logits is None else output.logits[0].float().cpu().numpy()
        hidden = output.last_hidden_state[0].float().cpu().numpy() if chunk.want_hidden else None
        return ChunkResult(logits=logits, hidden=hidden)

    def _check_room(self, cache: KVCache, n_new: int) -> None:
        require(
            cache.length + n_new <= self.max_seq_len,
            f"{cache.length} tokens held and {n_new} new do not fit the context window of {self.max_seq_len}",
        )


def _get(caches: dict[int, KVCache], handle: int) -> KVCache:
    require(handle in caches, f"no sequence has the handle {handle}; it was released or never made")
    return caches[handle]
