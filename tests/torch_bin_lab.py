"""Files of torch.save for the tests: real ones in both layouts, hand-made archives, and reading them back."""

from __future__ import annotations

import io
import mmap
import struct
import zlib
from collections import OrderedDict
from typing import Any

import safetensors.torch
import torch

from wafergpt.checkpoints.torch_bin.child import pieces
from wafergpt.checkpoints.torch_bin.reader import read_table

LAYOUTS = {"zip": True, "legacy": False}


def saved(value: Any, layout: str = "zip", **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=LAYOUTS[layout], **options)
    return buffer.getvalue()


def loaded(data: bytes) -> dict[str, torch.Tensor]:
    """What our reader makes of it, through safetensors' own library."""
    region = mmap.mmap(-1, max(len(data), 1))
    region[: len(data)] = data
    table = read_table(memoryview(region)[: len(data)])
    return safetensors.torch.load(b"".join(pieces(region, table)))


def loaded_by_torch(data: bytes) -> dict[str, torch.Tensor]:
    """What torch's own restricted reader makes of it, wherever the tensors lay."""
    return torch.load(io.BytesIO(data), map_location=lambda storage, _: storage, weights_only=True)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and bits(left[n]) == bits(right[n])
        for n in left
    )


def bits(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes in C order, whatever they mean."""
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    return dense.flatten().view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def varied_state() -> OrderedDict[str, torch.Tensor]:
    """A state dict with what occurs in files of weights: dtypes, views, shared storages, a scalar."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(7, 5, generator=generator)
    state = OrderedDict(
        {
            "wte.weight": matrix,
            "lm_head.weight": matrix,  # one storage
            "transposed": matrix.T,
            "rows": matrix[2:5],
            "columns": matrix[:, 1:4:2],
            "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
            "half": matrix.half(),
            "bfloat": matrix.bfloat16(),
            "double": matrix.double(),
            "bias": torch.ones(1, 1, 4, 4).tril().bool(),
            "old_bias": torch.ones(4, 4, dtype=torch.uint8),
            "masked_bias": torch.tensor(-1e4),
            "ids": torch.arange(4),
            "int": torch.arange(4, dtype=torch.int32),
            "short": torch.arange(4, dtype=torch.int16),
            "char": torch.arange(4, dtype=torch.int8),
            "empty": torch.zeros(0, 4),
        }
    )
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def archive(records: list[tuple[str, bytes]], method: int = 0, flags: int = 0) -> bytes:
    """A zip archive of stored records, laid out as torch does, but for what the caller breaks."""
    body, directory = b"", b""
    for name, data in records:
        raw, crc = name.encode(), zlib.crc32(data)
        sizes = (crc, len(data), len(data))
        directory += struct.pack(
            "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 0, 0, flags, method, 0, 0, *sizes, len(raw), 0, 0, 0, 0, 0,
            len(body),
        ) + raw  # fmt: skip
        body += struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 0, flags, method, 0, 0, *sizes, len(raw), 0)
        body += raw + data
    end = struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, len(records), len(records), len(directory), len(body), 0
    )
    return body + directory + end


def pickled(*instructions: bytes) -> bytes:
    """A pickle of protocol 2 made of these instructions."""
    return b"\x80\x02" + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """The instructions that push a storage."""
    number = b"\x8a\x08" + count.to_bytes(8, "little", signed=True)
    return (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + number
        + b"tQ"
    )


def tensor(key: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The instructions that push a tensor."""

    def whole(*values: int) -> bytes:
        return b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values)

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, count) + whole(offset)
        + b"(" + whole(*shape) + b"t(" + whole(*strides) + b"t\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def state_pickle(**tensors: bytes) -> bytes:
    """A pickle of a dict of tensors."""
    return pickled(b"}", *(text(name) + value + b"s" for name, value in tensors.items()))


def weights_archive(table: bytes, **storages: bytes) -> bytes:
    """An archive with that data.pkl and those storages."""
    records = [(f"archive/data/{key}", data) for key, data in storages.items()]
    return archive([("archive/data.pkl", table), *records, ("archive/version", b"3\n")])
