"""Low-rank adapters: train a few numbers beside frozen matrices, then merge them in, and out to the bit.

The layer computes with W and the adapter apart, y = W x + s B (A x), until `merge` writes W + s B A in W's
place and keeps W. A tied embedding stays tied: its adapter changes input rows and head alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wafergpt.config import require
from wafergpt.model.config import LoRAConfig
from wafergpt.model.gpt import GPT, Embedding, Linear
from wafergpt.model.init import draw
from wafergpt.model.mup import ParameterRule
from wafergpt.ops import dispatch

A, B = "lora_a", "lora_b"


class LoRALinear(Linear):
    """A linear layer and its adapter; `weight` and `bias` are frozen, `lora_a` is [r, I], `lora_b` [O, r]."""

    def __init__(self, linear: Linear, config: LoRAConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.int8 = linear.weight, linear.bias, linear.int8
        self.scale = config.scale
        self.lora_a = nn.Parameter(linear.weight.new_zeros(config.rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        self.kept: Tensor | None = None  # the weight as it was before a merge

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.kept is not None:
            return y
        low = dispatch.linear(x, self.lora_a, None)
        return y + self.scale * dispatch.linear(low, self.lora_b, None)


class LoRAEmbedding(Embedding):
    """A token embedding and its adapter; `lora_a` [r, D], `lora_b` [V, r]."""

    def __init__(self, embedding: Embedding, config: LoRAConfig) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight
        self.scale = config.scale
        self.lora_a = nn.Parameter(embedding.weight.new_zeros(config.rank, embedding.embedding_dim))
        self.lora_b = nn.Parameter(embedding.weight.new_zeros(embedding.num_embeddings, config.rank))
        self.kept: Tensor | None = None

    def forward(self, ids: Tensor, out_dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        rows = super().forward(ids, out_dtype)
        if self.kept is not None:
            return rows
        return rows + self.scale * (F.embedding(ids, self.lora_b) @ self.lora_a).to(out_dtype)

    def table(self) -> Tensor:
        return (
            self.weight if self.kept is not None else self.weight + self.scale * (self.lora_b @ self.lora_a)
        )


def adapted(model: GPT) -> dict[str, LoRALinear | LoRAEmbedding]:
    """Name -> module of every layer with an adapter."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear | LoRAEmbedding)
    }


def add_adapters(model: GPT, config: LoRAConfig, seed: int = 0) -> GPT:
    """Freeze `model` and put an adapter beside each target; nothing it computes changes yet. Returns it.

    A is drawn with standard deviation 1 / sqrt(in), a function of seed and name; B is zero.
    Raises ConfigError for a model that has adapters.
    """
    require(not adapted(model), "this model has adapters already; merge them first")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if "wte" in config.targets:
        model.wte = LoRAEmbedding(model.wte, config)
    for block in model.h:
        for target in config.targets:
            if target != "wte":
                owner, _, name = target.partition(".")
                part = getattr(block, owner)
                setattr(part, name, LoRALinear(getattr(part, name), config))
    for name, module in adapted(model).items():
        std = 1 / math.sqrt(module.lora_a.shape[1])
        with torch.no_grad():
            draw(
                module.lora_a,
                ParameterRule(init_std=std, lr_scale=1.0, weight_decay=True),
                f"{name}.{A}",
                seed,
            )
    return model


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A in float64, rounded once to W's dtype."""
    return (weight.double() + scale * (b.double() @ a.double())).to(weight.dtype)


@torch.no_grad()
def merge(model: GPT) -> GPT:
    """Write every adapter into its weight, keeping the old one; returns the model.

    Raises ConfigError for a model without adapters, and for one that is merged already.
    """
    modules = adapted(model)
    require(bool(modules), "this model has no adapters to merge")
    for name, module in modules.items():
        require(
            module.kept is None,
            f"the adapter of '{name}' is merged already; a second time would add it again",
        )
    for module in modules.values():
        module.kept = module.weight.detach().clone()
        module.weight.copy_(merged_weight(module.weight, module.lora_a, module.lora_b, module.scale))
    return model


@torch.no_grad()
def unmerge(model: GPT) -> GPT:
    """Undo `merge`, to the bit; returns the model. Raises ConfigError for a model that is not merged."""
    modules = adapted(model)
    merged = bool(modules) and all(module.kept is not None for module in modules.values())
    require(merged, "this model is not merged, so there is nothing to undo")
    for module in modules.values():
        assert module.kept is not None
        module.weight.copy_(module.kept)
        module.kept = None
    return model
