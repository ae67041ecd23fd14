"""Heads beside the language model's own: scores of a last hidden state, for labels and for spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wafergpt.config import require
from wafergpt.model.gpt import GPT
from wafergpt.ops import dispatch

NAME = "head"  # of the submodule: its parameters are `head.weight` and `head.bias`


class Head(nn.Module):
    """hidden [..., D] -> float32 scores [..., O].

    It starts at zero: every outcome is equally likely, in any parametrisation, and no draw decides anything.
    """

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_outputs, d_model))
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """Products in hidden's dtype, as the head of the language model; sums of bias in float32."""
        scores = dispatch.linear(hidden, self.weight, None)
        return scores.to(self.bias.dtype) + self.bias


def attach_head(model: GPT, n_outputs: int, values: Mapping[str, NDArray[np.float32]] | None = None) -> Head:
    """Give `model` a head, fresh or of `values` (`weight`, `bias`). Raises ConfigError if it has one."""
    require(not hasattr(model, NAME), "this model has a head already")
    head = Head(model.config.d_model, n_outputs).to(model.ln_f.weight.device)
    if values is not None:
        head.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    model.add_module(NAME, head)
    return head


def last_of_each(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """The last real token's state of examples end to end: hidden [N, D] -> [n examples, D]."""
    ends = torch.tensor(list(lengths), device=hidden.device).cumsum(0) - 1
    return hidden.index_select(0, ends)


def span_loss(scores: Tensor, targets: Tensor, lengths: Sequence[int]) -> Tensor:
    """Nats of the answers' first and last tokens among their passages', summed over examples.

    scores [N, 2] of examples end to end; targets [N, 3]: 1 at an answer's first token, 1 at its last, and
    what is added to both scores, -infinity outside of the passage.
    """
    sizes = list(lengths)
    parts = zip((scores + targets[:, 2:]).split(sizes), targets[:, :2].split(sizes), strict=True)
    nats = []
    for part, marks in parts:
        log_p, places = part.log_softmax(0), marks.argmax(0)
        nats.append(-(log_p[places[0], 0] + log_p[places[1], 1]))
    return torch.stack(nats).sum()
