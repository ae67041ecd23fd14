"""The confined process: reads one file of torch.save from one handle, writes safetensors to another.

    python -P -m wafergpt.checkpoints.torch_bin.child SOURCE TARGET MEMORY_BYTES CPU_S

SOURCE and TARGET are open handles. Standard output gets one JSON line: {"walls": [...]} when it is done,
{"error": ..., "kind": "file" | "storage" | "bug"} when it is not.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from wafergpt.checkpoints.tensor_file import MAX_HEADER_BYTES
from wafergpt.checkpoints.torch_bin.confine import ConfinedError, confine
from wafergpt.checkpoints.torch_bin.reader import Tensor, TensorTable, read_table
from wafergpt.errors import CheckpointError, shown
from wafergpt.units import MIB, format_bytes

_PIECE_BYTES = 4 * MIB
_ALIGNMENT = 8


def main() -> NoReturn:
    """Do it and end the process."""
    source, target, memory_bytes, cpu_s = map(int, sys.argv[1:5])
    reply: dict[str, Any]
    try:
        reply = {"walls": _convert(source, target, memory_bytes, cpu_s)}
    except MemoryError:  # before everything else: there may be no room for a longer answer
        reply = {"kind": "file", "error": f"needs over {format_bytes(memory_bytes)} of memory to read"}
    except CheckpointError as error:
        reply = {"kind": "file", "error": str(error)}
    except ConfinedError as error:
        reply = {"kind": "file", "error": f"made its reader try what it may not ({error})"}
    except OSError as error:
        reply = {"kind": "storage", "error": error.strerror or str(error)}
    except Exception as error:
        reply = {"kind": "bug", "error": f"{type(error).__name__}: {error}"[:1000]}
    os.write(1, json.dumps(reply).encode("ascii"))
    os._exit(0)  # an ordinary end would import and close what it may not


def _convert(source: int, target: int, memory_bytes: int, cpu_s: int) -> list[str]:
    n_bytes = os.fstat(source).st_size
    if n_bytes == 0:
        raise CheckpointError("is empty")
    region = mmap.mmap(source, n_bytes, access=mmap.ACCESS_READ)
    json.dumps({})
    shown("")  # both import what they need at their first call, which is not possible from here on
    walls = confine(memory_bytes, cpu_s, 2 * n_bytes + MAX_HEADER_BYTES + _ALIGNMENT)
    table = read_table(memoryview(region))
    for piece in pieces(region, table):
        while piece.nbytes:
            piece = piece[os.write(target, piece) :]
    return list(walls)


def pieces(region: mmap.mmap, table: TensorTable) -> Iterator[memoryview]:
    """The safetensors file of all tensors, a few MiB at a time.

    Raises CheckpointError when numbers do not match their checksum, or names are too many.
    """
    # Widest type first, else in the file's order: every tensor starts at a multiple of its item size.
    order = sorted(table.tensors, key=lambda name: -table.tensors[name].storage.item_bytes)
    yield memoryview(_header(table, order))
    data = memoryview(region)
    checked: set[str] = set()
    for name in order:
        tensor = table.tensors[name]
        key = tensor.storage.key
        record = table.records[key]
        if key not in checked:
            record.check_crc(data, f"data/{key}")
            checked.add(key)
        yield from _numbers(region, tensor, table.begin(tensor))
        # Give the pages back: what is mapped counts as this process's memory while it is held.
        first = record.begin - record.begin % mmap.PAGESIZE
        if record.end > first:
            region.madvise(mmap.MADV_DONTNEED, first, record.end - first)


def _header(table: TensorTable, order: list[str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        tensor = table.tensors[name]
        end = position + tensor.size_bytes
        entries[name] = {
            "dtype": tensor.storage.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"its names need a header of {len(text)} bytes, over {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


def _numbers(region: mmap.mmap, tensor: Tensor, begin: int) -> Iterator[memoryview]:
    """The tensor's bytes in C order; only a view that is not contiguous is copied, a piece at a time."""
    item_bytes = tensor.storage.item_bytes
    view = np.ndarray(  # bits, whatever they mean; NumPy checks once more that they lie in the file
        tensor.shape,
        f"<u{item_bytes}",
        buffer=region,
        offset=begin,
        strides=tuple(stride * item_bytes for stride in tensor.strides),
    )
    if view.flags.c_contiguous:
        data = memoryview(region)[begin : begin + view.nbytes]
        for start in range(0, view.nbytes, _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]
    else:
        yield from _copies(view)


def _copies(view: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    row_bytes = view[0].nbytes
    if row_bytes > _PIECE_BYTES:
        for row in view:
            yield from _copies(row)
        return
    n_rows = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, len(view), n_rows):
        yield np.array(view[start : start + n_rows], order="C").reshape(-1).view(np.uint8).data


if __name__ == "__main__":
    main()
