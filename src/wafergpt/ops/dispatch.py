"""One explicit place that picks, for each operation, the fastest equal of `ops.reference`.

Mixed precision: weights of linear layers and embeddings may be bfloat16 while the residual stream,
LayerNorm parameters and biases stay float32. `layer_norm` takes the residual's dtype and returns the
compute dtype; `linear` returns its input's dtype; adding its result to the residual promotes to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wafergpt.ops import reference


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last dimension; statistics in the dtype of x; result in `out_dtype` (default: x's)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(out_dtype or x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., I] @ weight [O, I]^T + bias [O], in x's dtype."""
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU, exact (erf) or tanh form."""
    return F.gelu(x, approximate="tanh" if tanh else "none")


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """softmax(scale q k^T) v over keys where `allowed` (bool, broadcastable to [B, H, T, S]); see reference."""
    return reference.attention(q, k, v, scale, allowed)


def causal_attention_packed(qkv: Tensor, n_heads: int, scale: float) -> Tensor:
    """Causal self-attention of packed qkv [B, T, 3D] -> [B, T, D] (no padding, no cache)."""
    n_rows, n_positions, width = qkv.shape
    q, k, v = qkv.view(n_rows, n_positions, 3, n_heads, width // 3 // n_heads).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out.transpose(1, 2).reshape(n_rows, n_positions, width // 3)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, logit_scale: float = 1.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """(sum of nats float32, number of counted labels) of softmax(logit_scale * hidden @ weight^T) at labels.

    hidden [N, D], weight [V, D], labels [N] int64.
    """
    logits = (hidden @ weight.T).float() * logit_scale
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return loss, (labels != ignore_index).sum()


def adamw_step(
    master: Tensor,
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> None:
    """`reference.adamw_step` on the float32 `master`, then `weight` (float32 or bfloat16) = master.

    `weight` may be `master` itself. `grad` is float32 or bfloat16 of the same shape.
    """
    reference.adamw_step(
        master, grad, exp_avg, exp_avg_sq,
        step=step, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, grad_scale=grad_scale,
    )  # fmt: skip
    if weight is not master:
        weight.copy_(master)


def sum_of_squares(grads: list[Tensor]) -> Tensor:
    """Sum over all elements of all tensors of x^2, float64 scalar: the squared global norm."""
    total = torch.zeros((), dtype=torch.float64)
    for grad in grads:
        total += grad.float().square().sum(dtype=torch.float64).cpu()
    return total
