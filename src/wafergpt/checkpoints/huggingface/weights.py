"""Weights as safetensors files, one or several shards, streamed: a few MiB are in memory at a time.

Layout as Transformers 5 writes it: `model.safetensors`, or `model-00001-of-0000N.safetensors` and
`model.safetensors.index.json`; the tied head is stored once, as the embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.files import CHUNK_BYTES, FileDigest, FileLayer, write_synced
from wafergpt.checkpoints.huggingface.names import PREFIX, is_transposed, their_shape
from wafergpt.errors import CheckpointError, ConfigError, NonFiniteError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_ALIGNMENT = 8  # of the data, as the safetensors library pads its header


class WeightsDtype(StrEnum):
    """The number format of the weights in the file, named as `torch` and config.json name it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def item_bytes(self) -> int:
        """Bytes per value."""
        return 4 if self is WeightsDtype.FLOAT32 else 2

    @property
    def tag(self) -> str:
        """The name in a safetensors header."""
        return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[self.value]


def write_weights(
    files: FileLayer,
    folder: Path,
    arrays: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: WeightsDtype,
    max_shard_bytes: int,
) -> dict[str, FileDigest]:
    """Write `arrays` (our names and layout; `shapes` says which) into `folder`, under their names.

    A tensor larger than `max_shard_bytes` gets a shard of its own. Returns the digest of each file. Raises
    OSError, NonFiniteError for NaN or infinity, ConfigError for a value that a half type cannot hold,
    CheckpointError for an array of another shape.
    """
    shards = _plan(shapes, dtype, max_shard_bytes)
    digests: dict[str, FileDigest] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({PREFIX + name: file for name in names})
        part = {name: shapes[name] for name in names}
        digests[file] = write_synced(files, folder / file, _serialized(arrays, part, dtype))
    if len(shards) > 1:
        n_values = sum(math.prod(shape) for shape in shapes.values())
        metadata = {"total_parameters": n_values, "total_size": n_values * dtype.item_bytes}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2).encode() + b"\n"
        digests[INDEX_NAME] = write_synced(files, folder / INDEX_NAME, [memoryview(text)])
    return digests


def _plan(
    shapes: Mapping[str, tuple[int, ...]], dtype: WeightsDtype, max_shard_bytes: int
) -> list[list[str]]:
    """The names of each shard: in the model's order, filled one after the other."""
    shards: list[list[str]] = [[]]
    filled_bytes = 0
    for name, shape in shapes.items():
        size_bytes = math.prod(shape) * dtype.item_bytes
        if shards[-1] and filled_bytes + size_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(name)
        filled_bytes += size_bytes
    return shards


def _serialized(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], dtype: WeightsDtype
) -> Iterator[memoryview]:
    """One file's bytes: header, then every tensor, row block by row block."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # Transformers refuses a file without it
    position = 0
    for name, shape in shapes.items():
        theirs = their_shape(name, shape)
        end = position + math.prod(shape) * dtype.item_bytes
        header[PREFIX + name] = {"dtype": dtype.tag, "shape": list(theirs), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise CheckpointError(f"weight '{name}' has shape {array.shape}, the config says {shape}")
        for block in _row_blocks(array.T if is_transposed(name) else array):
            yield _narrowed(name, block, dtype).view(np.uint8).reshape(-1).data
        del array, block  # before the next one is made
        yield memoryview(b"")  # so that the writer lets the last block go too


def _row_blocks(array: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Contiguous float32 copies (or views) of at most a few MiB."""
    row_bytes = 4 * math.prod(array.shape[1:])
    n_rows = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, array.shape[0], n_rows):
        yield np.ascontiguousarray(array[start : start + n_rows], dtype="<f4")


def _narrowed(name: str, block: NDArray[np.float32], dtype: WeightsDtype) -> NDArray[Any]:
    """The block in the file's type, rounded to nearest even."""
    if not np.isfinite(block).all():
        raise NonFiniteError(f"weight '{name}' holds NaN or infinity; it was not written")
    if dtype is WeightsDtype.FLOAT32:
        return block
    if dtype is WeightsDtype.FLOAT16:
        with np.errstate(over="ignore"):  # judged below
            half = block.astype("<f2")
        fits = bool(np.isfinite(half).all())
    else:
        bits = block.view("<u4")
        even = (bits >> np.uint32(16)) & np.uint32(1)
        half = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2")
        fits = not bool(((half & 0x7F80) == 0x7F80).any())
    if not fits:
        raise ConfigError(f"weight '{name}' holds a value too large for {dtype}; write float32")
    return half
