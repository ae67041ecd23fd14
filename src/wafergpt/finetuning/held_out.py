"""How far a task is learned: nats, and accuracy where there is one, on validation examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wafergpt.finetuning.classifier import LabelObjective, SpanObjective
from wafergpt.finetuning.packing import PackedExamples
from wafergpt.finetuning.supervised import TokenObjective
from wafergpt.model.gpt import GPT
from wafergpt.training.distributed import World
from wafergpt.training.metrics import plain

TaskObjective = TokenObjective | LabelObjective | SpanObjective


@dataclass(frozen=True, kw_only=True)
class TaskLoss:
    """Means over validation examples."""

    nats: float
    unit: str
    accuracy: float | None
    n: int  # examples

    def __str__(self) -> str:
        shown = f"{self.nats:.4f} {self.unit}"
        return shown if self.accuracy is None else f"{shown}, accuracy {self.accuracy:.4f}"

    @property
    def brief(self) -> str:
        """In the live line."""
        return f"{self.nats:.3f}" if self.accuracy is None else f"{self.nats:.3f} ({self.accuracy:.1%} right)"

    def to_line(self) -> dict[str, Any]:
        """Fields of a metrics line."""
        line: dict[str, Any] = {"held_out_nats": plain(self.nats), "held_out_examples": self.n}
        return line if self.accuracy is None else {**line, "held_out_accuracy": self.accuracy}


class TaskHeldOut:
    """Validation examples, packed as in training; `objective` is the one that is trained."""

    def __init__(self, examples: PackedExamples, objective: TaskObjective) -> None:
        self.examples = examples
        self.objective = objective

    @torch.no_grad()
    def loss(self, model: GPT, world: World, batch_size: int, max_tokens: int | None = None) -> TaskLoss:
        """On all rows, or evenly spread ones of at most about `max_tokens` tokens."""
        n_rows = self.examples.n_samples
        n = n_rows
        if max_tokens is not None:
            n = min(n_rows, max(1, max_tokens * n_rows // max(1, self.examples.n_tokens(n_rows))))
        picked = np.array([i * n_rows // n for i in range(n)])
        batches = [picked[i : i + batch_size] for i in range(0, n, batch_size)]
        nats, count, n_right, n_examples = 0.0, 0.0, 0, 0
        counts_right = False
        for batch in batches[world.rank :: world.size]:
            given = [torch.from_numpy(array).to(world.device) for array in self.examples.arrays(batch)]
            total = self.objective.total(*given)
            nats, count = nats + float(total.nats), count + total.weight
            n_examples += len(given[1])
            if total.n_right is not None:
                counts_right, n_right = True, n_right + total.n_right
        nats, count, right, number = world.total([nats, count, float(n_right), float(n_examples)])
        return TaskLoss(
            nats=nats / count,
            unit=self.objective.unit,
            accuracy=right / number if world.any(counts_right) else None,
            n=int(number),
        )

    def from_line(self, line: Mapping[str, Any]) -> TaskLoss:
        """What `TaskLoss.to_line` wrote."""
        return TaskLoss(
            nats=line["held_out_nats"],
            unit=self.objective.unit,
            accuracy=line.get("held_out_accuracy"),
            n=line["held_out_examples"],
        )
