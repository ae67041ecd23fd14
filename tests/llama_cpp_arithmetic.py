"""GPT-2 as llama.cpp computes it on a CPU: our formulas in float64, with its roundings put in by name.

ggml rounds where a float32 program would not: GELU goes through a table of float16 in and out
(ggml-cpu, vec.h), and what a matrix is multiplied with is first brought to that matrix's partner type
(`vec_dot_type` in ggml-cpu.c): float16 for F16, bfloat16 for BF16, blocks of Q8_0 for the quantised types.
With these in place, the two differ by float32 sums only, and by values near a rounding edge that fall to the
other side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.gguf.blocks import decode, encode
from wafergpt.checkpoints.gguf.layout import GGUFKind, TensorType
from wafergpt.checkpoints.stored_model import StoredModel

Values = NDArray[np.float64]

PARTNERS = {
    GGUFKind.F32: TensorType.F32,
    GGUFKind.F16: TensorType.F16,
    GGUFKind.BF16: TensorType.BF16,
    GGUFKind.Q8_0: TensorType.Q8_0,
    GGUFKind.Q4_0: TensorType.Q8_0,
}


def log_probabilities(model: StoredModel, kind: GGUFKind, token_ids: list[int]) -> Values:
    """[T, V] of the model as a file of `kind` holds it (`model` is that file, read back)."""
    config, partner = model.config, PARTNERS[kind]
    weight = {name: np.asarray(array, np.float64) for name, array in model.arrays.items()}

    def linear(x: Values, name: str) -> Values:
        return rounded(x, partner) @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def norm(x: Values, name: str) -> Values:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.layer_norm_eps)
        return x * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    n = len(token_ids)
    x = weight["wte.weight"][token_ids] + weight["wpe.weight"][:n]  # [T, D]
    hidden_keys = np.triu(np.full((n, n), -np.inf), 1)  # [T, T]
    for layer in range(config.n_layers):
        qkv = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn")  # [T, 3D]
        q, k, v = qkv.reshape(n, 3, config.n_heads, config.d_head).transpose(1, 2, 0, 3)  # each [H, T, K]
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(config.d_head) + hidden_keys  # [H, T, T]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v).transpose(1, 0, 2).reshape(n, -1)  # [T, D]
        x = x + linear(mixed, f"h.{layer}.attn.c_proj")
        inner = table_gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))  # [T, F]
        x = x + linear(inner, f"h.{layer}.mlp.c_proj")
    logits = rounded(norm(x, "ln_f"), partner) @ weight["wte.weight"].T  # [T, V]
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def rounded(x: Values, partner: TensorType) -> Values:
    """What remains of an activation when it is brought to the type a matrix is multiplied with."""
    rows = np.ascontiguousarray(x, np.float32)
    return decode(encode(rows, partner, "activation"), partner).astype(np.float64)


def table_gelu(x: Values) -> Values:
    """tanh GELU of the float16 nearest to x, as the float16 nearest to that; the ends are left alone."""
    half = tanh_gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
    return np.where(x <= -10, 0.0, np.where(x >= 10, x, half))


def tanh_gelu(x: Values) -> Values:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
