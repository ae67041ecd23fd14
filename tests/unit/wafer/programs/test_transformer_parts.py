"""LayerNorm, softmax, GELU and attention on the mesh, each against float64 with the bound of its roundings.

u is float32's unit roundoff. exp and tanh are within 3e-7 of their value, erf within 2e-7 (`machine/alu.py`).
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.programs import trees
from wafergpt.wafer.programs.attention import Attention, attention
from wafergpt.wafer.programs.gelu import gelu
from wafergpt.wafer.programs.layernorm import layer_norm
from wafergpt.wafer.programs.softmax import softmax

U, EXP_ERROR, ERF_ERROR = 2.0**-24, 3e-7, 2e-7
NATIVE = pytest.param("native", marks=pytest.mark.skipif(bool(native.available()), reason="no native core"))
ENGINES = ["numpy", NATIVE]


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("width", [1, 2, 8])
def test_layer_norm(width: int, engine: str) -> None:
    x, gain, bias = normal(3, 64, scale=3) + np.float32(1), normal(64, seed=1), normal(64, seed=2)
    found = layer_norm(x, gain, bias, width=width, engine=engine)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    root = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    mean_error = 66 * U * np.abs(wide).mean(1, keepdims=True)  # 63 additions, one product, one difference
    size = np.abs(gain) * np.abs(centred) / root
    bound = np.abs(gain) * mean_error / root * 2 + size * (64 / 2 + 8) * U + 2 * U * np.abs(bias)
    assert (np.abs(found - (centred / root * gain + bias)) <= bound).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("width", [1, 2, 8])
def test_softmax(width: int, engine: str) -> None:
    x = normal(3, 32, scale=10)
    found = softmax(x, width=width, engine=engine)
    below = x.astype(np.float64) - x.max(1, keepdims=True).astype(np.float64)
    exact = np.exp(below)
    exact /= exact.sum(1, keepdims=True)
    bound = exact * (U * (np.abs(below) + np.abs(below).max()) + 2 * EXP_ERROR + (32 + 3) * U)
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu(form: str, engine: str) -> None:
    x = normal(2, 3, 50, scale=3)
    wide = x.astype(np.float64)
    if form == "erf":
        inner = np.vectorize(math.erf)(wide / math.sqrt(2))
    else:
        inner = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    # The inner function's argument has at most 8 roundings; |z f'(z)| < 1 for both functions.
    bound = np.abs(wide) / 2 * (max(EXP_ERROR, ERF_ERROR) + 8 * U) + 3 * U * np.abs(wide)
    assert (np.abs(gelu(x, form=form, engine=engine) - wide / 2 * (1 + inner)) <= bound).all()


def exact_attention(qkv: np.ndarray, n_heads: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention in float64 [T, d], and the bound of float32's error."""
    n_tokens = len(qkv)
    q, k, v = qkv.astype(np.float64).reshape(n_tokens, 3, n_heads, -1).transpose(1, 2, 0, 3)
    causal = np.where(np.tri(n_tokens, dtype=bool), 0.0, -np.inf)
    scores = scale * q @ k.transpose(0, 2, 1) + causal
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - top)
    p /= p.sum(-1, keepdims=True)
    sizes = scale * np.abs(q) @ np.abs(k).transpose(0, 2, 1)
    # A score has d_head + 2 roundings, its difference from the largest one more, and both are at most `size`.
    relative = 2 * (q.shape[-1] + 4) * U * sizes.max(-1, keepdims=True) + 2 * EXP_ERROR
    bound = (relative + 2 * (n_tokens + 4) * U) * (p @ np.abs(v))
    return tuple(a.transpose(1, 0, 2).reshape(n_tokens, -1) for a in (p @ v, bound))  # type: ignore[return-value]


MESHES = [(4, 4, 2, 11), (3, 2, 2, 7), (1, 4, 1, 3), (5, 1, 1, 12), (4, 2, 1, 2)]


@pytest.mark.parametrize(
    ("mesh", "engine"),
    [(MESHES[1], "numpy"), *(pytest.param(mesh, "native", marks=NATIVE.marks) for mesh in MESHES)],
)
def test_attention(mesh: tuple[int, int, int, int], engine: str) -> None:
    width, height, n_heads, n_tokens = mesh
    qkv = normal(n_tokens, 3 * 16, scale=2)
    found = attention(qkv, n_heads=n_heads, scale=0.3, width=width, height=height, engine=engine)
    exact, bound = exact_attention(qkv, n_heads, 0.3)
    assert (np.abs(found - exact) <= bound).all()


def test_planted_a_cache_of_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that overwrite the position they hold, and read it several times, are noticed."""
    monkeypatch.setattr(Attention, "_wrap", lambda self, offset: self._code.li(offset, 0))
    qkv = normal(11, 3 * 16, scale=2)
    exact, bound = exact_attention(qkv, 2, 0.3)
    found = attention(qkv, n_heads=2, scale=0.3, width=4, height=4)
    assert not (np.abs(found - exact) <= bound).all()


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ProgramError, match="heads do not divide"):
        attention(normal(2, 48), n_heads=3, scale=1.0, width=2, height=4)
    with pytest.raises(ProgramError, match="unknown form"):
        gelu(normal(1, 1, 2), form="sigmoid")


def test_a_forest_has_a_tree_per_group() -> None:
    assert trees.forest(6, trees.chain(3)) == (-1, 0, 1, -1, 3, 4)
