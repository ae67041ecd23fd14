"""HDF5 files in the ways other programs write them, and in the ways a stranger might."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wafergpt.checkpoints.modelzoo.names import zoo_names
from wafergpt.model.config import GPTConfig, MuPConfig, Parametrization

TINY = GPTConfig(
    d_model=48,
    n_layers=3,
    n_heads=4,
    vocab_size=101,
    max_seq_len=32,
    parametrization=Parametrization.MUP,
    mup=MuPConfig(base_d_model=16, base_d_ffn=64),
)


def arrays_of(config: GPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under our names."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype("f4") for name, shape in config.parameter_shapes().items()}


def zoo_state(
    config: GPTConfig, arrays: dict[str, np.ndarray], prefix: str = "model."
) -> dict[str, np.ndarray]:
    """The same weights as a flat Model Zoo training state: key -> array, the tied head stored again."""
    state = {}
    for name, array in arrays.items():
        keys = zoo_names(name)
        state.update({prefix + key: part for key, part in zip(keys, np.split(array, len(keys)), strict=True)})
    state[prefix + "lm_head.weight"] = arrays["wte.weight"]
    return state


def old_keys(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys as release 1.9 and before: no `.embed`, the last LayerNorm under two names."""
    renamed = {
        key.replace("position_embeddings.embed.", "position_embeddings."): a for key, a in state.items()
    }
    norms = {key: array for key, array in renamed.items() if "transformer_decoder.norm." in key}
    return renamed | {key.replace("transformer_decoder.norm.", "ln_f."): a for key, a in norms.items()}


def write_legacy(path: Path, state: dict[str, Any], version: float | None = 0.4, **options: Any) -> Path:
    """As cerebras.pytorch before format 0.5: a type beside each value, a pickled tree that stays shut."""
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            if isinstance(value, int | float):
                file.create_dataset(key, data=value).attrs["__H5_TYPE__"] = "ScalarH5Type"
                continue
            packing = options if value.shape else {}
            data = file.create_dataset(key, data=value, **packing)
            data.attrs["__H5_TYPE__"] = "TorchTensorH5Type"
            data.attrs["is_bfloat16"] = False
        file.attrs["__spec__"] = b"cposix\nsystem\n(S'touch marker'\ntR.".hex()
        if version is not None:
            file.attrs["__version__"] = version
    return path


def pack_lz4(data: bytes, block_bytes: int) -> bytes:
    """A chunk of HDF5's LZ4 filter by a small encoder of our own: runs become matches, the rest literals."""
    out = len(data).to_bytes(8, "big") + block_bytes.to_bytes(4, "big")
    for start in range(0, len(data), block_bytes):
        block = data[start : start + block_bytes]
        packed = lz4_block(block)
        stored = packed if len(packed) < len(block) else block
        out += len(stored).to_bytes(4, "big") + stored
    return out


def lz4_block(data: bytes) -> bytes:
    """LZ4's block format: greedy matches of four or more bytes, found by a table."""
    out, table = bytearray(), {}
    position = anchor = 0
    while position + 12 < len(data):  # the last five bytes are literals, the last match starts twelve before
        found = table.get(data[position : position + 4])
        table[data[position : position + 4]] = position
        if found is None or position - found > 65535:
            position += 1
            continue
        length = 4
        while position + length < len(data) - 5 and data[found + length] == data[position + length]:
            length += 1
        out += _sequence(data[anchor:position], position - found, length)
        position += length
        anchor = position
    return bytes(out + _sequence(data[anchor:], None, 4))


def _sequence(literals: bytes, offset: int | None, length: int) -> bytes:
    n, m = len(literals), length - 4
    token = (min(n, 15) << 4) | (min(m, 15) if offset is not None else 0)
    out = bytes([token]) + (_more(n - 15) if n >= 15 else b"") + literals
    if offset is not None:
        out += offset.to_bytes(2, "little") + (_more(m - 15) if m >= 15 else b"")
    return out


def _more(n: int) -> bytes:
    return b"\xff" * (n // 255) + bytes([n % 255])


def write_lz4(file: h5py.File, key: str, array: np.ndarray, chunks: tuple[int, ...]) -> None:
    """A data set as hdf5plugin's LZ4 leaves it, without that library: filter 32004, raw chunks."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(chunks)
    plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, (0,))
    space, kind = h5py.h5s.create_simple(array.shape), h5py.h5t.py_create(array.dtype)
    data = h5py.h5d.create(file.id, key.encode(), kind, space, plist)
    for corner in np.ndindex(*[-(-n // size) for n, size in zip(array.shape, chunks, strict=True)]):
        first = tuple(i * size for i, size in zip(corner, chunks, strict=True))
        chunk = np.zeros(chunks, array.dtype)
        part = array[tuple(slice(f, f + size) for f, size in zip(first, chunks, strict=True))]
        chunk[tuple(slice(0, n) for n in part.shape)] = part
        data.write_direct_chunk(first, pack_lz4(chunk.tobytes(), 1 << 12))


def hostile(path: Path, kind: str) -> Path:
    """A file whose data set `data` is what `kind` says."""
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["data"] = np.arange(10, dtype="i4")
    (path.parent / "raw.bin").write_bytes(bytes(400))
    with h5py.File(path, "w") as file:
        _plant(file, kind, other)
    if kind == "a truncated file":
        path.write_bytes(path.read_bytes()[:-1000])
    return path


def _plant(file: h5py.File, kind: str, other: Path) -> None:
    zeros = np.zeros(100, "i4")
    if kind == "a soft link":
        file["real"] = zeros
        file["data"] = h5py.SoftLink("/real")
    elif kind == "an external link":
        file["data"] = h5py.ExternalLink(str(other), "/data")
    elif kind == "external storage":
        file.create_dataset("data", (100,), "i4", external=[(str(other.parent / "raw.bin"), 0, 400)])
    elif kind == "a virtual data set":
        layout = h5py.VirtualLayout((10,), "i4")
        layout[:] = h5py.VirtualSource(str(other), "data", (10,))
        file.create_virtual_dataset("data", layout)
    elif kind == "a group":
        file.create_group("data")
    elif kind == "an unknown filter":
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10,))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((100,)), plist)
    elif kind == "a promise of a terabyte":
        file.create_dataset("data", (1 << 38,), "i4", chunks=(1 << 20,), compression="gzip")
    elif kind == "unwritten contiguous data":
        file.create_dataset("data", (1 << 30,), "i4")
    elif kind == "a giant chunk":
        file.create_dataset("data", (100,), "i4", chunks=(1 << 29,), maxshape=(None,))
    elif kind == "millions of chunks":
        file.create_dataset("data", (12_000_000,), "i1", chunks=(1,))
    elif kind == "object strings":
        file.create_dataset("data", data=["a", "b"], dtype=h5py.string_dtype())
    elif kind == "an empty space":
        file.create_dataset("data", data=h5py.Empty("f4"))
    elif kind == "a truncated file":
        file["data"] = np.arange(10_000, dtype="i4")
    else:
        raise AssertionError(kind)


KINDS = {
    "a soft link": "is a soft or external link",
    "an external link": "is a soft or external link",
    "external storage": "keeps its data in another file",
    "a virtual data set": "is a virtual data set",
    "a group": "is no data set",
    "an unknown filter": "is packed by filter 32015",
    "a promise of a terabyte": "promises 1099511627776 bytes and has 0",
    "unwritten contiguous data": "needs 4294967296 bytes and has 0",
    "a giant chunk": "has chunks of 2147483648 bytes",
    "millions of chunks": "has 12000000 chunks, over the limit",
    "object strings": "not numbers",
    "an empty space": "has a type that is not read",
    "a truncated file": "",
}


def described(text: str) -> dict[str, Any]:
    """A JSON attribute as plain data."""
    found: dict[str, Any] = json.loads(text)
    return found
