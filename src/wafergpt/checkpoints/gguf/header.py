"""The metadata and the table of tensors of a GGUF file, read without trusting a single number in it.

Counts and lengths are compared with what is left of the file before anything is allocated for them, sizes
are exact Python integers, and tensors must tile the data part: no overlap, no gap beyond the padding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.gguf.layout import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    SCALARS,
    TensorInfo,
    TensorType,
    Value,
    ValueType,
    padding,
    row_bytes,
)
from wafergpt.errors import CheckpointError, shown
from wafergpt.units import MIB

# Version 2 differs from 3 only in that 3 may be big-endian.
_VERSIONS = (2, 3)
# A vocabulary of 256,000 with merges, types and scores takes 12 MiB and 1.1 million items.
MAX_HEADER_BYTES = 64 * MIB
MAX_ITEMS = 1 << 21
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 64  # GGML_MAX_NAME
MAX_KEY_BYTES = 256
MAX_ALIGNMENT = 1 << 16
_MAX_SIZE = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Header:
    """What stands before the data: metadata, tensors by name in the file's order, where the data start."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    data_start: int


def parse_header(buffer: NDArray[np.uint8], label: str) -> Header:
    """The header of a whole file held in (or mapped as) `buffer`; `label` names the file in messages.

    Raises CheckpointError for anything but a well-formed little-endian GGUF file of version 2 or 3.
    """
    cursor = _Cursor(buffer, label)
    if cursor.take(len(MAGIC)) != MAGIC:
        cursor.refuse("it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.refuse("it is big-endian" if swapped in _VERSIONS else f"GGUF version {version} is not 2 or 3")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        cursor.refuse(f"{n_tensors} tensors and {n_keys} keys; at most {MAX_TENSORS} and {MAX_KEYS} are read")
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = cursor.name(MAX_KEY_BYTES)
        if key in metadata:
            cursor.refuse(f"the key '{key}' appears twice")
        metadata[key] = cursor.value(key)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        info = _tensor(cursor)
        if info.name in tensors:
            cursor.refuse(f"the tensor '{info.name}' appears twice")
        tensors[info.name] = info
    alignment = _alignment(cursor, metadata)
    data_start = cursor.position + padding(cursor.position, alignment)
    _check_tiling(cursor, tensors, alignment, buffer.nbytes - data_start)
    return Header(metadata=metadata, tensors=tensors, data_start=data_start)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    stored = metadata.get(ALIGNMENT_KEY)
    if stored is None:
        return DEFAULT_ALIGNMENT
    alignment = stored.value
    if stored.type is not ValueType.UINT32 or not isinstance(alignment, int):
        cursor.refuse(f"{ALIGNMENT_KEY} is not a uint32")
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.refuse(f"{ALIGNMENT_KEY} = {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.name(MAX_NAME_BYTES)
    n_dimensions = cursor.number("I")
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        cursor.refuse(f"tensor '{name}' has {n_dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(n_dimensions))[::-1]
    type_number, offset = cursor.number("I"), cursor.number("Q")
    try:
        kind = TensorType(type_number)
    except ValueError:
        known = ", ".join(known.name for known in TensorType)
        cursor.refuse(f"tensor '{name}' is of ggml type {type_number}; known: {known}")
    if math.prod(shape) >= _MAX_SIZE or 0 in shape:
        cursor.refuse(f"tensor '{name}' has the impossible shape {list(shape)}")
    try:
        n_bytes = math.prod(shape[:-1]) * row_bytes(shape[-1], kind)
    except ValueError as error:
        cursor.refuse(f"tensor '{name}' of type {kind.name}: {error}")
    return TensorInfo(name=name, shape=shape, type=kind, offset=offset, n_bytes=n_bytes)


def _check_tiling(
    cursor: _Cursor, tensors: Mapping[str, TensorInfo], alignment: int, data_bytes: int
) -> None:
    position = 0
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        expected = position + padding(position, alignment)
        if info.offset != expected:
            cursor.refuse(
                f"tensor '{info.name}' starts at {info.offset}, expected {expected}: a gap or an overlap"
            )
        position = info.offset + info.n_bytes
        if position > data_bytes:
            cursor.refuse(f"tensor '{info.name}' ends at {position}, the data end at {max(0, data_bytes)}")
    if data_bytes > position + padding(position, alignment):
        cursor.refuse(f"{data_bytes - position} bytes follow the last tensor")


class _Cursor:
    """Reads forward through the buffer; every step is checked against the end of the file."""

    def __init__(self, buffer: NDArray[np.uint8], label: str) -> None:
        self._buffer = buffer
        self._end = min(buffer.nbytes, MAX_HEADER_BYTES)
        self._label = label
        self._n_items = 0
        self.position = 0

    def refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self._label}: {reason}")

    def take(self, n_bytes: int) -> bytes:
        start, end = self.position, self.position + n_bytes
        if end > self._end:
            whole = self._end == self._buffer.nbytes
            limit = "the end of the file" if whole else f"the limit of {MAX_HEADER_BYTES} bytes"
            self.refuse(f"the header needs {n_bytes} bytes at {start}, past {limit}")
        self.position = end
        return self._buffer[start:end].tobytes()

    def number(self, letter: str) -> int:
        value: int = struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]
        return value

    def name(self, max_bytes: int) -> str:
        """A key or tensor name: short and printable, so that messages can quote it."""
        start = self.position
        text = self.string(max_bytes)
        if not (text.isascii() and text.isprintable()) or "'" in text or not text:
            self.refuse(f"the name at {start} is {shown(text)}; names are printable ASCII")
        return text

    def string(self, max_bytes: int = MAX_HEADER_BYTES) -> str:
        length, start = self.number("Q"), self.position
        if length > max_bytes:
            self.refuse(f"the text at {start} has {length} bytes; at most {max_bytes} are allowed")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"the text at {start} is not UTF-8")

    def value(self, key: str) -> Value:
        kind = self._type(key)
        if kind is not ValueType.ARRAY:
            return Value(type=kind, value=self._plain(kind, key))
        inner = self._type(key)
        if inner is ValueType.ARRAY:
            self.refuse(f"'{key}' is an array of arrays")
        n_items = self.number("Q")
        self._n_items += n_items
        if self._n_items > MAX_ITEMS:
            self.refuse(f"'{key}' brings the arrays to {self._n_items} items; at most {MAX_ITEMS} are read")
        if inner is ValueType.STRING:
            return Value(type=inner, value=[self.string() for _ in range(n_items)])
        letter = SCALARS[inner]
        data = self.take(n_items * struct.calcsize("<" + letter))
        return Value(type=inner, value=np.frombuffer(data, "<" + letter).tolist())

    def _type(self, key: str) -> ValueType:
        number = self.number("I")
        try:
            return ValueType(number)
        except ValueError:
            self.refuse(f"'{key}' has the unknown type {number}")

    def _plain(self, kind: ValueType, key: str) -> Any:
        if kind is ValueType.STRING:
            return self.string()
        if kind is ValueType.BOOL:
            byte = self.number("B")
            if byte > 1:
                self.refuse(f"'{key}' is a bool of value {byte}")
            return bool(byte)
        return self.number(SCALARS[kind])
