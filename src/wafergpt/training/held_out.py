"""Loss on held-out text while training, in nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from wafergpt.data.shards import ShardSet
from wafergpt.errors import DataError
from wafergpt.model.gpt import GPT
from wafergpt.training.config import TrainConfig
from wafergpt.training.distributed import World
from wafergpt.training.metrics import plain


class Loss(Protocol):
    """What a held-out evaluation found; `str()` of it is what a person reads."""

    @property
    def brief(self) -> str:
        """In the live line."""
        ...

    def to_line(self) -> dict[str, Any]:
        """Fields of a metrics line."""
        ...


class Evaluation(Protocol):
    """Held-out data and how a model is judged by it."""

    def loss(self, model: GPT, world: World, batch_size: int, max_tokens: int | None = None) -> Loss:
        """On at most about `max_tokens` tokens of it; every process takes part."""
        ...

    def from_line(self, line: Mapping[str, Any]) -> Loss:
        """What `Loss.to_line` wrote."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean over `n_tokens` predicted tokens."""

    nats_per_token: float
    bits_per_byte: float  # nats per token x predictions per byte of the whole held-out text / ln 2
    n_tokens: int

    def __str__(self) -> str:
        return f"{self.nats_per_token:.4f} nats/token, {self.bits_per_byte:.4f} bits/byte"

    @property
    def brief(self) -> str:
        """In the live line."""
        return f"{self.nats_per_token:.3f} ({self.bits_per_byte:.3f} bits/byte)"

    def to_line(self) -> dict[str, Any]:
        """Fields of a metrics line."""
        return {
            "held_out_nats_per_token": plain(self.nats_per_token),
            "held_out_bits_per_byte": plain(self.bits_per_byte),
            "held_out_tokens": self.n_tokens,
        }


class HeldOut:
    """The held-out shards of a prepared folder, cut into windows of T predictions with stride T.

    Every token but the first of the whole text is predicted exactly once; the last window may be shorter.
    """

    def __init__(self, shards: ShardSet, seq_len: int) -> None:
        if shards.n_tokens < 2:
            raise DataError(
                f"'{shards.folder}' holds {shards.n_tokens} token, so there is nothing to predict"
            )
        self.shards = shards
        self.seq_len = seq_len
        self.n_windows = math.ceil((shards.n_tokens - 1) / seq_len)

    def picked(self, max_tokens: int | None) -> list[int]:
        """Window numbers, evenly spread, of at most `max_tokens` predictions (but at least one window)."""
        if max_tokens is None:
            return list(range(self.n_windows))
        n = min(self.n_windows, max(1, max_tokens // self.seq_len))
        return [i * self.n_windows // n for i in range(n)]

    def window(self, number: int) -> np.ndarray:
        """The T + 1 (or fewer, in the last window) ids of one window, int64."""
        start = number * self.seq_len
        n = min(self.seq_len + 1, self.shards.n_tokens - start)
        return self.shards.read(start, n).astype(np.int64)

    @torch.no_grad()
    def loss(self, model: GPT, world: World, batch_size: int, max_tokens: int | None = None) -> HeldOutLoss:
        """The model's loss on the picked windows; each process takes every `world.size`-th batch of them."""
        windows = [self.window(number) for number in self.picked(max_tokens)]
        full = [window for window in windows if len(window) == self.seq_len + 1]
        batches = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
        batches += [[window] for window in windows if len(window) <= self.seq_len]
        nats, n_tokens = 0.0, 0
        for batch in batches[world.rank :: world.size]:
            ids = torch.from_numpy(np.stack(batch)).to(world.device)  # [B, T+1]
            n = ids[:, 1:].numel()
            nats += float(model.loss(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())) * n
            n_tokens += n
        nats, count = world.total([nats, float(n_tokens)])
        tokens_per_byte = (self.shards.n_tokens - 1) / max(1, self.shards.n_text_bytes)
        return HeldOutLoss(
            nats_per_token=nats / count,
            bits_per_byte=nats / count * tokens_per_byte / math.log(2),
            n_tokens=int(count),
        )

    def from_line(self, line: Mapping[str, Any]) -> HeldOutLoss:
        """What `HeldOutLoss.to_line` wrote."""
        return HeldOutLoss(
            nats_per_token=line["held_out_nats_per_token"],
            bits_per_byte=line["held_out_bits_per_byte"],
            n_tokens=line["held_out_tokens"],
        )


def open_held_out(config: TrainConfig) -> HeldOut | None:
    """The held-out part of `config.data`, or None when the folder was prepared without one."""
    folder = config.data.path / "held_out"
    return HeldOut(ShardSet.open(folder), config.data.seq_len) if folder.is_dir() else None
