"""Learning the tokens that count: answers, translations, an author's words."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wafergpt.finetuning.packing import IGNORED
from wafergpt.model.gpt import GPT


class Total(NamedTuple):
    """A sum over what counts in a batch."""

    nats: Tensor  # scalar, weighted
    weight: float  # what the nats are divided by for a mean
    n_right: int | None  # likeliest outcome the wanted one; None: not counted


class TokenObjective(nn.Module):
    """Nats of the tokens that count; the head of the language model sees only their positions."""

    unit = "nats/token"

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def total(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> Total:
        """ids [N], lengths [n], targets [N] with -100 where none counts, or with hints beside them [N, 3].

        With hints there are logits of all positions that count, at once: [n counted, V].
        """
        hidden = self.model.packed(ids, lengths.tolist())  # [N, D]
        if targets.ndim == 2:
            where = (targets[:, 0] != IGNORED).nonzero()[:, 0]
            wanted, hints, nats = targets.index_select(0, where).unbind(1)
            logits = self.model.logits(hidden.index_select(0, where))
            raised = logits.scatter_add(1, hints.long()[:, None], nats.to(logits.dtype)[:, None])
            return Total(cross_entropy(raised, wanted.long(), reduction="sum"), float(len(where)), None)
        where = (targets != IGNORED).nonzero()[:, 0]
        nats, count = self.model.total_loss(hidden.index_select(0, where), targets[where])
        return Total(nats, float(count), None)

    def forward(self, ids: Tensor, lengths: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """This batch's share of the step's mean, see `PackedExamples.batch`."""
        return self.total(ids, lengths, targets).nats * scale
