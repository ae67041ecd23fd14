"""Tiny models for the native backend, its single kernels, and what they must give, in float64 NumPy."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import amx_lab
from wafergpt.backends.backend import Chunk
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.kernels import native, native_build
from wafergpt.kernels.native import Format
from wafergpt.model.config import Activation, GPTConfig, Parametrization

needs_library = pytest.mark.skipif(
    not native_build.status().available, reason=f"no native library: {native_build.status().reason}"
)
EPS = 2.0**-24  # float32's rounding, relative
BF16 = 2.0**-8  # bfloat16's
STORE, GELU_ERF, GELU_TANH, ADD_TO = range(4)  # kernel.h's Finish
PRECISIONS = ("f32", "bf16", "int8", "int4")


def isas() -> list[Any]:
    """Every instruction set as a pytest parameter; those that this CPU has not are named skips.

    AMX may be carried out by `amx_lab`'s machine instead; the parameter's name then says so.
    """
    here = native.supported_isas() if native_build.status().available else []
    here += ["amx"] if amx_lab.machine() is not None else []
    stood_in = here.count("amx") and "amx" not in native.supported_isas()
    return [
        pytest.param(
            name,
            marks=[] if name in here else pytest.mark.skip(reason=f"this CPU has no {name}"),
            id="amx-emulated" if name == "amx" and stood_in else name,
        )
        for name in native.ISAS
    ]


def config(**changes: Any) -> GPTConfig:
    """A model in which nothing is a multiple of a panel, a page or a vector."""
    return GPTConfig(
        **{"d_model": 60, "n_layers": 2, "n_heads": 3, "vocab_size": 131, "max_seq_len": 80, "d_ffn": 77}
        | changes
    )


CONFIGS = {
    "ragged": config(),
    "tanh": config(activation=Activation.GELU_TANH, n_heads=1, d_ffn=256),
    "mup": config(d_model=64, n_heads=2, d_ffn=128, parametrization=Parametrization.MUP),
}


def stored_model(shape: GPTConfig, seed: int = 0) -> StoredModel:
    """Random weights of deviation 0.1, LayerNorm weights around 1, biases not zero."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, size in shape.parameter_shapes().items():
        offset = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        arrays[name] = (rng.standard_normal(size) * 0.1 + offset).astype(np.float32)
    return StoredModel(config=shape, arrays=arrays)


def token_ids(shape: GPTConfig, n: int, seed: int = 1) -> list[int]:
    """n ids, as Python ints."""
    return np.random.default_rng(seed).integers(0, shape.vocab_size, n).tolist()


def rows_of(
    backend: NativeCPU, ids: Sequence[int], cuts: Sequence[int], sequence: int | None = None
) -> NDArray[np.float32]:
    """Logits of every position when the ids are given in chunks of these sizes (the last one repeats)."""
    handle = backend.open() if sequence is None else sequence
    rows, at = [], 0
    while at < len(ids):
        n = min(cuts[min(len(rows), len(cuts) - 1)], len(ids) - at)
        result = backend.run([Chunk(sequence=handle, token_ids=ids[at : at + n], n_logits=n)])[0]
        rows.append(result.logits)
        at += n
    backend.release(handle)
    return np.concatenate(rows)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A packed matrix and what it stands for."""

    format: Format
    panels: NDArray[np.uint8]
    scales: NDArray[np.float32] | None
    exact: NDArray[np.float64]  # [n, k]

    @classmethod
    def pack(cls, format: Format, weight: NDArray[np.float32]) -> Weights:
        panels, scales = native.pack(format, weight)
        unpacked = native.unpack(format, panels, scales, *weight.shape).astype(np.float64)
        return cls(format=format, panels=panels, scales=scales, exact=unpacked)


class ProductStruct(ctypes.Structure):
    """probe.cpp's wn_product."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("format", "finish", "n", "k", "n_rows")),
        ("alpha", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("panels", "scales", "bias", "x", "out")),
    ]


class AttentionStruct(ctypes.Structure):
    """probe.cpp's wn_attention."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kv_format", "n_positions", "d_head")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
    ]


def product(
    isa: str,
    w: Weights,
    x: NDArray[np.float32],
    *,
    bias: NDArray[np.float32] | None = None,
    finish: int = STORE,
    alpha: float = 1.0,
    parts: Sequence[int] = (),
) -> NDArray[np.float32]:
    """x [rows, k] times the packed matrix, [rows, n]; `parts`: how many rows go together (default all)."""
    n, k = w.exact.shape
    out = np.zeros((len(x), n), np.float32)
    padded = None if bias is None else np.pad(bias, (0, -n % native.PANEL))
    call = ProductStruct(
        format=w.format, finish=finish, n=n, k=k, n_rows=len(x), alpha=alpha,
        panels=w.panels.ctypes.data, scales=native.address(w.scales), bias=native.address(padded),
        x=x.ctypes.data, out=out.ctypes.data,
    )  # fmt: skip
    probe = native.load().wn_probe_product
    probe.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    at = 0
    for n_rows in parts or [len(x)]:
        probe(isa.encode(), ctypes.byref(call), at, at + n_rows)
        at += n_rows
    assert at == len(x)
    return out


def attention(
    isa: str, format: Format, qkv: NDArray[np.float32], scale: float, n_first: int
) -> NDArray[np.float32]:
    """One head's causal attention, qkv [3, T, K] -> [T, K]; the first n_first positions one by one."""
    _, n_positions, d_head = qkv.shape
    q, k, v = (np.ascontiguousarray(part) for part in qkv)
    out = np.zeros((n_positions, d_head), np.float32)
    call = AttentionStruct(
        kv_format=format, n_positions=n_positions, d_head=d_head, scale=scale,
        q=q.ctypes.data, k=k.ctypes.data, v=v.ctypes.data, out=out.ctypes.data,
    )  # fmt: skip
    probe = native.load().wn_probe_attention
    probe.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
    probe(isa.encode(), ctypes.byref(call), n_first)
    return out


def layer_norm(isa: str, x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32],
               eps: float) -> NDArray[np.float32]:  # fmt: skip
    """The kernel over rows of x [rows, d]."""
    out = np.empty_like(x)
    probe = native.load().wn_probe_layer_norm
    pointer = ctypes.c_void_p
    probe.argtypes = [
        ctypes.c_char_p,
        *[pointer] * 3,
        ctypes.c_float,
        pointer,
        ctypes.c_int64,
        ctypes.c_int64,
    ]
    probe(isa.encode(), x.ctypes.data, weight.ctypes.data, bias.ctypes.data, eps, out.ctypes.data, *x.shape)
    return out


def to_bf16(x: NDArray[Any]) -> NDArray[np.float32]:
    """Rounded to bfloat16, to nearest even (finite values)."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def inputs_as_seen(isa: str, format: Format, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x [rows, k] as a product of that format sees it."""
    if format is Format.F32 or (format is Format.BF16 and isa not in ("avx512", "amx")):
        return x.astype(np.float64)
    if format is Format.BF16:
        return to_bf16(x).astype(np.float64)
    top = np.abs(x).max(1, keepdims=True)
    counts = top >= 2.0**-121
    factor = np.where(counts, np.float32(127) / np.where(counts, top, 1), 0).astype(np.float32)
    return np.rint(x * factor).astype(np.float64) * np.where(counts, top / np.float32(127), 0)


def gelu(x: NDArray[np.float64], tanh: bool) -> NDArray[np.float64]:
    """GELU as `ops.reference` defines it, in float64."""
    if tanh:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def causal_attention(qkv: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """softmax(scale q k^T) v over the keys up to each query, qkv [3, T, K] -> [T, K]."""
    q, k, v = qkv
    scores = scale * (q @ k.T)
    scores[np.triu_indices(len(q), 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)) @ v
