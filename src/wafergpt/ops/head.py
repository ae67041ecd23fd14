"""Head and loss in float32 where torch multiplies: gradients are made in the forward pass, no logits kept.

The same design as `ops.cpu.LinearCrossEntropy`: three products a chunk, where recomputing the logits in the
backward pass takes four, and chunks that stay in the last cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_VALUES = 1 << 22  # logits of a chunk: 16 MiB
MIN_ROWS = 64  # a vocabulary of 50,257 gets 83


class LinearCrossEntropy(torch.autograd.Function):
    """hidden [N, D], weight [V, D] float32, labels [N] int64 -> sum of nats, float32 scalar."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, ignore: int
    ) -> Tensor:
        """softmax(scale hidden @ weight^T) at the labels; labels equal to `ignore` add nothing."""
        wanted = labels != ignore
        safe = torch.where(wanted, labels, 0)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if wants_hidden else None
        dweight = torch.zeros_like(weight) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.float64)
        n_rows = max(MIN_ROWS, CHUNK_VALUES // weight.shape[0])
        for start in range(0, len(hidden), n_rows):
            rows = slice(start, start + n_rows)
            block, at_label, counted = scale * hidden[rows], safe[rows, None], wanted[rows]
            log_p = torch.log_softmax(block @ weight.T, dim=1)  # [rows, V]
            nats = torch.where(counted, -log_p.gather(1, at_label)[:, 0], 0.0)
            total += nats.sum(dtype=torch.float64)
            if dhidden is None and dweight is None:
                continue
            dlogits = log_p.exp_().scatter_add_(1, at_label, log_p.new_full(at_label.shape, -1.0))
            dlogits[~counted] = 0.0
            if dhidden is not None:
                torch.mm(dlogits, weight, out=dhidden[rows])
            if dweight is not None:
                dweight.addmm_(dlogits.T, block)
        ctx.scale = scale
        ctx.save_for_backward(dhidden, dweight)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Both gradients times that of the sum."""
        dhidden, dweight = ctx.saved_tensors
        return (
            None if dhidden is None else dhidden * (ctx.scale * dloss),
            None if dweight is None else dweight * dloss,
            None,
            None,
            None,
        )
