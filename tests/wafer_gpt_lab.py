"""Small GPTs for the mesh: trained ones, their shapes, float64 logits with the size of float32's errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from wafergpt.model.config import Activation, GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.model.mup import multipliers
from wafergpt.wafer.programs.placement import GPTShape

U, FUNCTION_ERROR = 2.0**-24, 3e-7  # float32's unit roundoff; exp, tanh and erf on the PEs (machine/alu.py)
TEXT = (
    "The wafer holds the whole model. Every core keeps a small tile of each matrix, and the tiles stay where "
    "they are. Only the vectors move: a core adds what its neighbour sends and passes the sum on. "
    "A token goes in on the left, and a token comes out; it is the next one's turn. "
)
Arrays = Mapping[str, np.ndarray]


def shape_of(config: GPTConfig, n_positions: int) -> GPTShape:
    """What the mesh must know of a model."""
    scales = multipliers(config)
    return GPTShape(
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_ffn=config.ffn_width,
        vocab_size=config.vocab_size,
        n_positions=n_positions,
        gelu="erf" if config.activation is Activation.GELU else "tanh",
        attention_scale=scales.attention_scale,
        layer_norm_eps=config.layer_norm_eps,
        embedding_multiplier=scales.embedding,
        logits_multiplier=scales.logits,
    )


def weights_of(model: GPT) -> dict[str, np.ndarray]:
    """The model's parameters as float32 arrays."""
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@functools.cache
def trained(config: GPTConfig, n_steps: int = 300) -> GPT:
    """A model of bytes after some steps on TEXT; seeds fixed. One thread: products are small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(config, n_steps)
    finally:
        torch.set_num_threads(n_threads)


def _train(config: GPTConfig, n_steps: int) -> GPT:
    model = GPT(config, seed=0)
    data = torch.tensor(list((TEXT * 3).encode()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        starts = torch.randint(0, len(TEXT), (8,), generator=draw)
        rows = torch.stack([data[start : start + 65] for start in starts])
        logits = model(rows[:, :-1]).logits
        assert logits is not None
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def disturbed(config: GPTConfig, std: float = 0.1) -> GPT:
    """Random weights with nothing left at a symmetric or zero value."""
    model = GPT(config, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=draw) * std)
    return model.eval()


def greedy(model: GPT, prompt: Sequence[int], n_new: int) -> list[int]:
    """The tokens that torch (float32) adds to the prompt."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n_new):
            logits = model(torch.tensor([ids]), n_logits=1).logits
            assert logits is not None
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


class Sized:
    """A float64 value and the standard deviation of its float32 error.

    Roundings are taken as independent, zero on average, and at most U of what is rounded: a sum of n products
    is then off by sqrt(n) U sum |a b| at one deviation (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """

    def __init__(self, value: np.ndarray, variance: np.ndarray | float) -> None:
        self.value, self.variance = value, variance + np.zeros_like(value)

    def linear(self, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> Sized:
        """x W^T + b."""
        n = weight.shape[1] + 1
        size = np.abs(self.value) @ np.abs(weight).T + np.abs(bias)
        return Sized(self.value @ weight.T + bias, self.variance @ (weight**2).T + n * (U * size) ** 2)

    def plus(self, other: Sized) -> Sized:
        """x + y."""
        total = self.value + other.value
        return Sized(total, self.variance + other.variance + (U * total) ** 2)

    def norm(self, gain: np.ndarray, bias: np.ndarray, eps: float) -> Sized:
        """LayerNorm over the last axis."""
        n = self.value.shape[-1]
        centred = self.value - self.value.mean(-1, keepdims=True)
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        mean = n * (U * np.abs(self.value).mean(-1, keepdims=True)) ** 2
        moved = self.variance + self.variance.mean(-1, keepdims=True) / n + mean + (U * centred) ** 2
        relative = moved.mean(-1, keepdims=True) / root**2 + (n + 8) * U**2
        y = centred / root * gain
        last = (U * (np.abs(y) + np.abs(bias))) ** 2
        return Sized(y + bias, (gain / root) ** 2 * moved + y**2 * relative + last)

    def gelu(self, form: str) -> Sized:
        """GELU; its slope is below 1.13."""
        x = self.value
        inner = np.vectorize(math.erf)(x / math.sqrt(2))
        if form == "tanh":
            inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        own = np.abs(x) * (FUNCTION_ERROR / 2 + 4 * U)
        return Sized(x / 2 * (1 + inner), 1.13**2 * self.variance + own**2)

    def attention(self, n_heads: int, scale: float) -> Sized:
        """Causal attention of packed q, k, v [T, 3 d]."""
        n_tokens = len(self.value)
        (q, k, v), (dq, dk, dv) = (
            part.reshape(n_tokens, 3, n_heads, -1).transpose(1, 2, 0, 3)
            for part in (self.value, self.variance)
        )
        causal = np.tri(n_tokens, dtype=bool)
        scores = np.where(causal, scale * q @ k.transpose(0, 2, 1), -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        turned = (0, 2, 1)
        size = scale * np.abs(q) @ np.abs(k).transpose(turned)
        moved = scale**2 * (q**2 @ dk.transpose(turned) + dq @ (k**2).transpose(turned))
        moved = moved + (q.shape[-1] + 4) * (U * size) ** 2
        worst = np.where(causal, moved, 0).max(-1, keepdims=True)
        relative = 4 * worst + 2 * FUNCTION_ERROR**2 + 2 * (n_tokens + 4) * U**2
        variance = relative * (p @ np.abs(v)) ** 2 + p**2 @ dv
        return Sized(*(part.transpose(1, 0, 2).reshape(n_tokens, -1) for part in (p @ v, variance)))


def logits_of(weights: Arrays, shape: GPTShape, ids: Sequence[int]) -> Sized:
    """Logits [T, V] of the model in float64, and how far float32 may be off."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    start = shape.embedding_multiplier * (w["wte.weight"][list(ids)] + w["wpe.weight"][: len(ids)])
    h = Sized(start, 2 * (U * start) ** 2)
    for layer in range(shape.n_layers):
        p = {name.removeprefix(f"h.{layer}."): value for name, value in w.items()}
        x = h.norm(p["ln_1.weight"], p["ln_1.bias"], shape.layer_norm_eps)
        x = x.linear(p["attn.c_attn.weight"], p["attn.c_attn.bias"])
        x = x.attention(shape.n_heads, shape.attention_scale)
        h = h.plus(x.linear(p["attn.c_proj.weight"], p["attn.c_proj.bias"]))
        x = h.norm(p["ln_2.weight"], p["ln_2.bias"], shape.layer_norm_eps)
        x = x.linear(p["mlp.c_fc.weight"], p["mlp.c_fc.bias"]).gelu(shape.gelu)
        h = h.plus(x.linear(p["mlp.c_proj.weight"], p["mlp.c_proj.bias"]))
    logits = h.norm(w["ln_f.weight"], w["ln_f.bias"], shape.layer_norm_eps).linear(w["wte.weight"])
    scale = shape.logits_multiplier
    return Sized(scale * logits.value, scale**2 * logits.variance)
