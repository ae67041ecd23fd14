"""The model run by PyTorch as it is written: the reference that every other backend meets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wafergpt.backends.backend import LogitRow, LogitRows, Prefill
from wafergpt.config import require
from wafergpt.model.cache import KVCache
from wafergpt.model.gpt import GPT
from wafergpt.model.inputs import check_ids

# Positions whose [V] logits exist at once while scoring: 103 MB of float32 at V = 50257.
_SCORE_CHUNK_POSITIONS = 512


class TorchEager:
    """A `Backend` over one `GPT`, on whatever device and in whatever dtype the model is."""

    def __init__(self, model: GPT) -> None:
        self.model = model.eval()
        self._caches: dict[int, KVCache] = {}
        self._handles = itertools.count()

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    def prefill(self, token_ids: Sequence[int]) -> Prefill:
        """See `Backend.prefill`."""
        weight = self.model.wte.weight
        cache = KVCache(self.model.config, 1, dtype=weight.dtype, device=weight.device)
        logits = self._append(cache, token_ids)
        handle = next(self._handles)
        self._caches[handle] = cache
        return Prefill(handle=handle, logits=logits)

    def decode(self, handles: Sequence[int], token_ids: Sequence[int]) -> LogitRows:
        """See `Backend.decode`. Everything is checked before any sequence is changed."""
        require(len(handles) == len(token_ids), f"{len(handles)} sequences but {len(token_ids)} tokens")
        require(len(set(handles)) == len(handles), "a sequence is named twice in one decode")
        check_ids("token id", torch.tensor(list(token_ids) or [0]), self.vocab_size, "the vocabulary")
        caches = [self._get(handle) for handle in handles]
        for cache in caches:
            self._check_room(cache, 1)
        rows = [self._append(cache, [i]) for cache, i in zip(caches, token_ids, strict=True)]
        return np.stack(rows) if rows else np.empty((0, self.vocab_size), np.float32)

    def score(self, windows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """See `Backend.score`. Windows run together, shorter ones padded on the right."""
        if not windows:
            return []
        lengths = [len(window) for window in windows]
        longest = self.max_seq_len + 1
        for length in lengths:
            require(2 <= length <= longest, f"a window to score holds 2 to {longest} tokens, not {length}")
        device = self.model.wte.weight.device
        ids = torch.zeros(len(windows), max(lengths), dtype=torch.int64)  # [B, T + 1]
        for row, window in enumerate(windows):
            ids[row, : len(window)] = torch.as_tensor(np.asarray(window, dtype=np.int64))
        check_ids("token id", ids, self.vocab_size, "the vocabulary")
        ids = ids.to(device)
        # Padding stands after the real tokens, so causality alone keeps it from them: no mask is needed.
        with torch.no_grad():
            hidden = self.model(ids[:, :-1], n_logits=0).last_hidden_state  # [B, T, D]
            scores = self._log_probabilities(hidden.flatten(0, 1), ids[:, 1:].flatten())
        rows = scores.view(len(windows), -1).cpu().numpy()  # [B, T]
        return [row[: length - 1].copy() for row, length in zip(rows, lengths, strict=True)]

    def release(self, handle: int) -> None:
        """See `Backend.release`."""
        self._get(handle)
        del self._caches[handle]

    def _get(self, handle: int) -> KVCache:
        require(handle in self._caches, f"no sequence has the handle {handle}; it was released or never made")
        return self._caches[handle]

    def _check_room(self, cache: KVCache, n_new: int) -> None:
        require(
            cache.length + n_new <= self.max_seq_len,
            f"{cache.length} tokens held and {n_new} new do not fit the context window of {self.max_seq_len}",
        )

    def _append(self, cache: KVCache, token_ids: Sequence[int]) -> LogitRow:
        self._check_room(cache, len(token_ids))
        ids = torch.tensor([list(token_ids)], dtype=torch.int64, device=cache.keys.device)  # [1, T]
        with torch.no_grad():
            logits = self.model(ids, cache=cache, n_logits=1).logits  # [1, 1, V]
        return logits[0, 0].float().cpu().numpy()  # type: ignore[no-any-return]

    def _log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden [N, D], targets [N] -> float32 [N], by chunks so that [N, V] never exists."""
        parts = []
        for start in range(0, len(targets), _SCORE_CHUNK_POSITIONS):
            rows = slice(start, start + _SCORE_CHUNK_POSITIONS)
            logits = self.model.logits(hidden[rows]).float()  # [chunk, V]
            parts.append(logits.gather(1, targets[rows, None])[:, 0] - logits.logsumexp(1))
        return torch.cat(parts)
