"""The mathematics, once, readable: the definition that every faster path is proven against.

Shapes: B batch, T query positions, S key positions, D d_model, H heads, K d_head, N = B*T rows,
I inputs, O outputs, V vocabulary. All functions work in any floating dtype; tests call them in
float32 and float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`; x [..., I], weight [O, I], bias [O] -> [..., O]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension (Ba et al. 2016), variance without Bessel's correction."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps) * weight + bias


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU (Hendrycks & Gimpel 2016): exact erf form (Cerebras-GPT) or tanh form (GPT-2's `gelu_new`)."""
    if tanh:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention_weights(q: Tensor, k: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """softmax(scale * q k^T) over the keys where `allowed` is True; a row with no allowed key is zero.

    q [B, H, T, K], k [B, H, S, K], allowed broadcastable to [B, H, T, S] -> [B, H, T, S].
    """
    scores = (q @ k.transpose(-1, -2)) * scale  # [B, H, T, S]
    if allowed is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~allowed, -math.inf)
    return torch.where(allowed.any(-1, keepdim=True), scores, torch.zeros_like(scores)).softmax(-1) * allowed


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """softmax(scale * q k^T) v (Vaswani et al. 2017, eq. 1); shapes as in `attention_weights`, v as k."""
    return attention_weights(q, k, scale, allowed) @ v


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """[T, S] True where query t, the last of which is the last key, may see key s."""
    offset = n_keys - n_queries
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(offset)


def causal_attention_packed(qkv: Tensor, n_heads: int, scale: float) -> Tensor:
    """Causal self-attention from the fused projection: qkv [B, T, 3D] -> [B, T, D]."""
    n_rows, n_positions, width = qkv.shape
    heads = qkv.view(n_rows, n_positions, 3, n_heads, width // 3 // n_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
    out = attention(q, k, v, scale, causal_mask(n_positions, n_positions, qkv.device))
    return out.transpose(1, 2).reshape(n_rows, n_positions, width // 3)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(logits)[label] in nats over rows whose label is not ignored, and their count.

    logits [N, V], labels [N] int64 -> (scalar, scalar int64).
    """
    counted = labels != ignore_index
    rows = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return -(rows * counted).sum(), counted.sum()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, logit_scale: float = 1.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the head: logits = logit_scale * hidden @ weight.T; hidden [N, D], weight [V, D]."""
    return cross_entropy(logit_scale * (hidden @ weight.T), labels, ignore_index)


@dataclass(frozen=True, kw_only=True)
class AdamWStep:
    """The numbers of one AdamW update. `step` counts from 1; decay is lr * weight_decay."""

    step: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_scale: float = 1.0  # multiplies the gradient first: clipping, mean over micro-batches


def adamw_step(parameter: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: AdamWStep) -> None:
    """One AdamW update in place (Loshchilov & Hutter 2019, as torch.optim.AdamW computes it)."""
    beta1, beta2 = by.betas
    grad = grad.to(parameter.dtype) * by.grad_scale
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**by.step)).sqrt() + by.eps
    parameter.mul_(1 - by.lr * by.weight_decay)
    parameter.sub_(by.lr / (1 - beta1**by.step) * exp_avg / denominator)
