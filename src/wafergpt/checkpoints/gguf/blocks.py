"""Rows of float32 values <-> the bytes of one tensor type.

float32, float16 and bfloat16 are done here; block-quantised types by the `gguf` library's NumPy code, which
its authors hold equal to llama.cpp's reference.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.gguf.layout import TensorType, row_bytes
from wafergpt.errors import CheckpointError, MissingDependencyError, NonFiniteError

Rows = NDArray[np.float32]  # [n_rows, n_values]
Bytes = NDArray[np.uint8]  # [n_rows, row_bytes]

_PLAIN = (TensorType.F32, TensorType.F16, TensorType.BF16)
_LARGEST_F16 = 65504.0
# A block's scale is a float16: the largest value / 127 (Q8_0) or / -8 (Q4_0).
_LARGEST = {
    TensorType.F16: _LARGEST_F16,
    TensorType.Q8_0: _LARGEST_F16 * 127,
    TensorType.Q4_0: _LARGEST_F16 * 8,
}
_LARGEST_BF16 = float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])


def needs_library(kind: TensorType) -> bool:
    """Whether `encode` and `decode` of `kind` need the `gguf` library."""
    return kind not in _PLAIN


def quantizers() -> types.ModuleType:
    """The library's `gguf.quants`. Raises MissingDependencyError."""
    try:
        import gguf.quants
    except ImportError:
        raise MissingDependencyError(
            "quantised GGUF tensors need the gguf library: pip install 'wafergpt[gguf]'"
        ) from None
    return gguf.quants  # type: ignore[no-any-return]


def encode(rows: Rows, kind: TensorType, name: str) -> Bytes:
    """float32 [n_rows, n_values] -> bytes [n_rows, row_bytes]; `name` is for messages.

    Rounds to nearest, ties to even (float16, bfloat16). Raises NonFiniteError for nan or infinity,
    CheckpointError for a value the type cannot hold, MissingDependencyError.
    """
    largest = float(np.abs(rows).max(initial=0.0))
    if not np.isfinite(largest):
        raise NonFiniteError(f"weight '{name}' holds nan or infinity; nothing was written")
    if largest > _LARGEST.get(kind, _LARGEST_BF16 if kind is TensorType.BF16 else np.inf):
        raise CheckpointError(
            f"weight '{name}' holds {largest:.6g}, which {kind.name.lower()} cannot; write f32 instead"
        )
    stored: NDArray[Any]
    if kind is TensorType.F32:
        stored = rows.astype("<f4", copy=False)
    elif kind is TensorType.F16:
        stored = rows.astype("<f2")
    elif kind is TensorType.BF16:
        bits = rows.astype("<f4").view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))  # cannot wrap: the values are finite
        stored = (bits >> 16).astype("<u2")
    else:
        stored = quantizers().quantize(rows, _library_type(kind))
    return np.ascontiguousarray(stored).view(np.uint8)


def decode(data: Bytes, kind: TensorType) -> Rows:
    """bytes [n_rows, row_bytes] -> float32 [n_rows, n_values], a view for F32.

    Raises MissingDependencyError.
    """
    if kind is TensorType.F32:
        return data.view("<f4")
    if kind is TensorType.F16:
        return data.view("<f2").astype(np.float32)
    if kind is TensorType.BF16:
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    rows: Rows = quantizers().dequantize(data, _library_type(kind))
    return rows


def _library_type(kind: TensorType) -> Any:
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(int(kind))


def rows_per_chunk(n_values: int, kind: TensorType, chunk_bytes: int) -> int:
    """How many rows make about `chunk_bytes` of float32 or of `kind`, whichever is larger; at least one."""
    return max(1, chunk_bytes // max(4 * n_values, row_bytes(n_values, kind)))
