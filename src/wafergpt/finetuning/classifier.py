"""Learning labels and spans with a head on the last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wafergpt.finetuning.supervised import Total
from wafergpt.model.gpt import GPT
from wafergpt.model.heads import Head, last_of_each, span_loss


class LabelObjective(nn.Module):
    """Nats of the label, from the head over each example's last real token; labels may weigh differently."""

    unit = "nats/example"

    def __init__(self, model: GPT, head: Head, weights: Sequence[float] = ()) -> None:
        super().__init__()
        self.model = model  # has the head among its parameters
        self._head = [head]  # in a list, so that it is not registered twice
        self._weights = torch.tensor(list(weights)) if weights else None

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids [N], lengths [n] -> float32 [n, C]."""
        sizes = lengths.tolist()
        scores: Tensor = self._head[0](last_of_each(self.model.packed(ids, sizes), sizes))
        return scores

    def total(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> Total:
        """targets [n] are labels."""
        scores = self.logits(ids, lengths)
        nats = -scores.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        n_right = int((scores.argmax(-1) == targets).sum())
        if self._weights is None:
            return Total(nats.sum(), float(len(targets)), n_right)
        weights = self._weights.to(nats.device)[targets]
        return Total((nats * weights).sum(), float(weights.sum()), n_right)

    def forward(self, ids: Tensor, lengths: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """This batch's share of the step's mean, see `PackedExamples.batch`."""
        return self.total(ids, lengths, targets).nats * scale


class SpanObjective(nn.Module):
    """Nats of an answer's first and last token among those of its passage."""

    unit = "nats/example"

    def __init__(self, model: GPT, head: Head) -> None:
        super().__init__()
        self.model = model
        self._head = [head]

    def total(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> Total:
        """targets [N, 3], see `heads.span_loss`."""
        sizes = lengths.tolist()
        scores = self._head[0](self.model.packed(ids, sizes))  # [N, 2]
        return Total(span_loss(scores, targets, sizes), float(len(sizes)), None)

    def forward(self, ids: Tensor, lengths: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """This batch's share of the step's mean, see `PackedExamples.batch`."""
        return self.total(ids, lengths, targets).nats * scale
