"""A plain GPT-2 in PyTorch as nanoGPT writes it: fused QKV, SDPA, tied head, all logits, F.cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.shapes import Shape


class Block(nn.Module):
    """One pre-LayerNorm layer."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.c_attn, self.c_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        heads = (
            part.view(b, t, self.n_heads, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(d, dim=2)
        )
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """Ids and labels in, mean loss out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.wte, self.wpe = nn.Embedding(shape.vocab_size, d), nn.Embedding(shape.seq_len, d)
        self.h = nn.ModuleList(Block(d, shape.n_heads) for _ in range(shape.n_layers))
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, shape.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """ids, labels [B, T] -> scalar."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))  # [B, T, V]
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
