"""Key-value cache: what attention remembers, so that a new token costs one position and not all of them.

Shapes: L layers, B batch, H heads, S cached positions, T new positions, K d_head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wafergpt.config import require
from wafergpt.model.config import GPTConfig


class LayerCache(Protocol):
    """What attention asks of a cache."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new k, v [B, H, T, K]; return the keys and values [B, H, S, K] to look at."""
        ...


class KVCache:
    """Keys and values of up to `capacity` positions of B sequences, and which of them are padding.

    Pass the same cache to successive `GPT.forward` calls under `torch.no_grad()`; each appends its T
    positions. A call that raises leaves the cache as it was.
    """

    def __init__(
        self,
        config: GPTConfig,
        n_rows: int,
        capacity: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """`capacity` is in positions (default: max_seq_len); `dtype` is the model's compute dtype."""
        self.capacity = config.max_seq_len if capacity is None else capacity
        shape = (config.n_layers, n_rows, config.n_heads, self.capacity, config.d_head)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, H, capacity, K]
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0  # positions held
        self.attention_mask: Tensor | None = None  # [B, length] bool, True where real; None: all real

    @property
    def n_rows(self) -> int:
        """B, the number of sequences."""
        return self.keys.shape[1]

    @property
    def n_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def check_room(self, n_rows: int, n_positions: int) -> None:
        """Raise ConfigError unless T more positions of B rows fit."""
        require(n_rows == self.n_rows, f"the cache holds {self.n_rows} rows, the input has {n_rows}")
        require(
            self.length + n_positions <= self.capacity,
            f"the cache is full: {self.length} positions held, {n_positions} new, capacity {self.capacity}",
        )
        require(
            not torch.is_grad_enabled(),
            "a key-value cache keeps no gradients; call the model under torch.no_grad()",
        )

    def extended_mask(self, attention_mask: Tensor | None, n_positions: int) -> Tensor | None:
        """The [B, S] mask of past and T new positions: the given one, or what was and real tokens."""
        if attention_mask is not None or self.attention_mask is None:
            return attention_mask
        new = self.attention_mask.new_ones(self.n_rows, n_positions)
        return torch.cat([self.attention_mask, new], dim=1)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new k, v [B, H, T, K]; return all keys and values [B, H, S, K] as views."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_positions: int, attention_mask: Tensor | None) -> None:
        """Count T positions as held, once every layer has appended them."""
        self.length += n_positions
        self.attention_mask = attention_mask
