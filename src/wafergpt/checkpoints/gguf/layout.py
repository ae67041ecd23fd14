"""GGUF version 3 as bytes: value types, tensor types, and how metadata and the table of tensors are encoded.

Source of every number: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and, for the
block sizes of tensor types, ggml's own type table (ggml.c). Everything is little-endian: magic, version,
counts of tensors and of metadata, metadata, tensor table, padding, tensor data. tests/unit holds all of
it against the `gguf` library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"


class ValueType(IntEnum):
    """The type tag of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's letter for each scalar; a bool is one byte, 0 or 1
SCALARS: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class TensorType(IntEnum):
    """The element types we know; the rest of ggml's are refused by number."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


@dataclass(frozen=True, kw_only=True)
class BlockSize:
    """Quantised types store rows in blocks of `n_values` values that take `n_bytes` together."""

    n_values: int
    n_bytes: int


BLOCKS: dict[TensorType, BlockSize] = {
    TensorType.F32: BlockSize(n_values=1, n_bytes=4),
    TensorType.F16: BlockSize(n_values=1, n_bytes=2),
    TensorType.BF16: BlockSize(n_values=1, n_bytes=2),
    TensorType.Q4_0: BlockSize(n_values=32, n_bytes=2 + 16),  # float16 scale, 4 bits each
    TensorType.Q4_1: BlockSize(n_values=32, n_bytes=4 + 16),
    TensorType.Q5_0: BlockSize(n_values=32, n_bytes=2 + 4 + 16),
    TensorType.Q5_1: BlockSize(n_values=32, n_bytes=4 + 4 + 16),
    TensorType.Q8_0: BlockSize(n_values=32, n_bytes=2 + 32),  # float16 scale, 8 bits each
    TensorType.Q2_K: BlockSize(n_values=256, n_bytes=84),
    TensorType.Q3_K: BlockSize(n_values=256, n_bytes=110),
    TensorType.Q4_K: BlockSize(n_values=256, n_bytes=144),
    TensorType.Q5_K: BlockSize(n_values=256, n_bytes=176),
    TensorType.Q6_K: BlockSize(n_values=256, n_bytes=210),
}


class GGUFKind(StrEnum):
    """What `write_gguf` makes; the name says how the matrices are stored.

    Vectors (biases, LayerNorms) and the position embedding are float32 in every kind, as in llama.cpp's
    own converter. Under Q4_0 the token embedding, which is also the head, is Q8_0: llama.cpp's quantiser
    likewise keeps a tied head wider than the rest (Q6_K there).
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


# general.file_type, the enumeration llama_ftype of llama.h
FILE_TYPES = {GGUFKind.F32: 0, GGUFKind.F16: 1, GGUFKind.Q4_0: 2, GGUFKind.Q8_0: 7, GGUFKind.BF16: 32}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A metadata value with its type; a list is an array of `type`."""

    type: ValueType
    value: int | float | bool | str | Sequence[int] | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies; `shape` as NumPy has it, `offset` in bytes from the start of the data part."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    n_bytes: int


def row_bytes(n_values: int, kind: TensorType) -> int:
    """Bytes of a row of `n_values`, which must be whole blocks. Raises ValueError."""
    block = BLOCKS[kind]
    if n_values % block.n_values:
        raise ValueError(f"a row of {n_values} values is not whole blocks of {block.n_values}")
    return n_values // block.n_values * block.n_bytes


def padding(position: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Bytes from `position` to the next multiple of `alignment`."""
    return -position % alignment


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the tensor data, padded to the default alignment."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _tagged(value)]
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))  # ggml names the fastest dimension first
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(shape)}Q", len(shape), *shape),
            struct.pack("<IQ", tensor.type, tensor.offset),
        ]
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _tagged(value: Value) -> bytes:
    content = value.value
    if isinstance(content, (list, tuple)):
        head = struct.pack("<IIQ", ValueType.ARRAY, value.type, len(content))
        return head + b"".join(_plain(value.type, item) for item in content)
    return struct.pack("<I", value.type) + _plain(value.type, content)


def _plain(kind: ValueType, content: object) -> bytes:
    return _string(str(content)) if kind is ValueType.STRING else struct.pack("<" + SCALARS[kind], content)
