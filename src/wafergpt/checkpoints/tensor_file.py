"""Named arrays <-> one safetensors file, strict in both directions and without copies.

The layout is safetensors' own (github.com/huggingface/safetensors, "Format"): 8 bytes little-endian
header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data without gaps. The library
serialises to one `bytes` or to a path and deserialises by copying; here arrays stream from memory through
the file layer while they are hashed, and come back as views of the buffer that was hashed. Tests hold both
sides against the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from wafergpt.checkpoints.files import CHUNK_BYTES
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.errors import CheckpointError, NonFiniteError, shown
from wafergpt.units import MIB

Array = npt.NDArray[Any]

# A 13B Cerebras-GPT with both moments needs about 0.2 MiB; a longer header is a lie told to make us allocate.
MAX_HEADER_BYTES = 8 * MIB
MAX_DIMENSIONS = 32
LENGTH_BYTES = 8
_ALIGNMENT = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# numpy has no bfloat16: held as its bits, so only readers that widen it may ask for this table.
DTYPES_WITH_BF16 = {**_DTYPES, "BF16": np.dtype("<u2")}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one array lies: `begin` and `end` are byte offsets into the data part."""

    name: str
    dtype_name: str  # as the file says it: "F32", "BF16", ...
    dtype: np.dtype[Any]  # how numpy holds it; BF16 as its uint16 bits
    shape: tuple[int, ...]
    begin: int
    end: int


def check_savable(label: str, arrays: Mapping[str, Array]) -> None:
    """Refuse what must not reach the disk; `label` names the group in messages.

    Raises NonFiniteError for a nan or infinity, TypeError for anything but an array of a known dtype.
    """
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("<") not in _DTYPE_NAMES:
            raise TypeError(f"{label}: '{name}' is not an array of a dtype safetensors and numpy share")
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"{label}: {name!r} cannot be the name of a tensor")
        if array.dtype.kind == "f":
            for piece in _pieces(_little_endian(array).reshape(-1)):
                if not np.isfinite(piece).all():
                    raise NonFiniteError(f"{label} tensor '{name}' holds nan or infinity; it was not saved")


def serialized(arrays: Mapping[str, Array]) -> Iterator[memoryview]:
    """The bytes of the file, piece by piece; an array that is C-contiguous is not copied."""
    # Widest type first, then by name, as the library does: every array starts at a multiple of its item size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    position = 0
    for name in order:
        array = arrays[name]
        end = position + array.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(arrays)} tensors need a header of {len(text)} bytes, over {MAX_HEADER_BYTES}")
    yield memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    for name in order:
        for piece in _pieces(_little_endian(arrays[name]).reshape(-1)):
            yield piece.view(np.uint8).data


def parse(buffer: npt.NDArray[np.uint8], label: str) -> dict[str, Array]:
    """The arrays of a whole file held in `buffer`, as writable views of it, in the file's order.

    `label` names the file in messages. Raises CheckpointError for anything but exactly one well-formed file.
    """
    entries, data_start = parse_header(buffer, label)
    arrays = {}
    for entry in entries:
        view = buffer[data_start + entry.begin : data_start + entry.end]
        if (data_start + entry.begin) % entry.dtype.itemsize:
            view = view.copy()  # allowed by the format, slow or fatal for kernels
        arrays[entry.name] = view.view(entry.dtype).reshape(entry.shape)
    return arrays


def parse_header(buffer: npt.NDArray[np.uint8], label: str) -> tuple[list[TensorEntry], int]:
    """The table of contents and the offset of the data part. Raises CheckpointError; see `parse`."""
    length = header_length(buffer[:LENGTH_BYTES].tobytes(), buffer.nbytes, label)
    data_start = LENGTH_BYTES + length
    text = buffer[LENGTH_BYTES:data_start].tobytes()
    return parse_table(text, buffer.nbytes - data_start, label), data_start


def header_length(prefix: bytes, file_bytes: int, label: str) -> int:
    """The length of the header, from the file's first 8 bytes and its size. Raises CheckpointError."""
    if file_bytes < LENGTH_BYTES:
        raise CheckpointError(f"{label}: {file_bytes} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{label}: header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > file_bytes:
        raise CheckpointError(f"{label}: header of {length} bytes does not fit in the file's {file_bytes}")
    return length


def parse_table(
    text: bytes, data_bytes: int, label: str, dtypes: Mapping[str, np.dtype[Any]] = _DTYPES
) -> list[TensorEntry]:
    """The entries of a header's JSON `text`, in the order of their data, which they fill without gaps.

    `data_bytes` is what the file holds after the header. Raises CheckpointError; `label` names the file.
    """

    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(f"{label}: {reason}")

    try:
        header = parse_json(text)
    except ValueError as error:
        refuse(f"header is not valid JSON: {error}")
    if not isinstance(header, dict) or not text.startswith(b"{"):  # the format allows padding at the end only
        refuse("header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse("__metadata__ is not a table of strings")
    entries = sorted(
        (_entry(name, fields, dtypes, refuse) for name, fields in header.items()),
        key=lambda e: (e.begin, e.end),
    )
    position = 0
    for entry in entries:
        if entry.begin != position:
            where = f"starts at {entry.begin}, expected {position}"
            refuse(f"tensor {shown(entry.name)} {where}: a gap or an overlap")
        position = entry.end
    if position != data_bytes:
        refuse(f"tensors hold {position} bytes, the file {data_bytes}")
    return entries


def _entry(
    name: str, fields: Any, dtypes: Mapping[str, np.dtype[Any]], refuse: Callable[[str], NoReturn]
) -> TensorEntry:
    label = f"tensor {shown(name)}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        refuse(f"{label} does not have exactly dtype, shape and data_offsets")
    dtype_name, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    dtype = dtypes.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        refuse(f"{label} has dtype {shown(dtype_name)}; known: {', '.join(dtypes)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        refuse(f"{label} has a bad shape")
    if not _sizes(offsets) or len(offsets) != 2:
        refuse(f"{label} has bad data_offsets")
    begin, end = offsets
    # Python integers: a product of hostile sizes cannot wrap round to a small number.
    if end - begin != math.prod(shape) * dtype.itemsize:
        refuse(
            f"{label} of shape {shown(shape)} and dtype {dtype_name} does not take {shown(end - begin)} bytes"
        )
    return TensorEntry(
        name=name, dtype_name=dtype_name, dtype=dtype, shape=tuple(shape), begin=begin, end=end
    )


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _little_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _pieces(flat: Array) -> Iterator[Array]:
    step = CHUNK_BYTES // flat.dtype.itemsize
    for start in range(0, flat.size, step):
        yield flat[start : start + step]
