"""One safetensors file nobody vouches for, mapped into memory: checked first, then read where it lies.

Nothing is allocated for a tensor before its length is known to fit the real file. The mapping is private
and copy-on-write: arrays are writable, the file never changes, and a page that is not touched costs nothing.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from wafergpt.checkpoints.tensor_file import (
    DTYPES_WITH_BF16,
    LENGTH_BYTES,
    Array,
    TensorEntry,
    header_length,
    parse_table,
)
from wafergpt.checkpoints.untrusted.folder import OpenFile, UntrustedFolder
from wafergpt.errors import StorageError, shown
from wafergpt.units import MIB

# A 13B GPT-2 file has about 700 tensors with its old buffers.
MAX_TENSORS = 30_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_SCAN_BYTES = MIB  # stays in the second-level cache between the read and the test
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}  # all ones: infinity or NaN


class MappedTensors:
    """The tensors of one mapped file. The mapping lives as long as this object or any array from it."""

    def __init__(self, file: OpenFile, entries: list[TensorEntry], data_start: int) -> None:
        """Made by `map_tensors`."""
        self._file = file
        self._data_start = data_start
        self._buffer = _map(file)
        self._finite: set[str] = set()
        self.entries = {entry.name: entry for entry in entries}

    @property
    def label(self) -> str:
        """The file, for messages."""
        return self._file.label

    def array(self, name: str) -> Array:
        """The tensor: a writable view of the private mapping, BF16 and F16 widened to a new float32 array.

        Other dtypes are as stored. Raises KeyError for an unknown name, CheckpointError if the tensor holds
        NaN or infinity or the file was changed since it was opened.
        """
        entry = self.entries[name]
        self.check_finite([name])
        self._file.check_unchanged()
        values = self._view(entry)
        if entry.dtype_name == "BF16":  # the upper half of a float32
            wide = np.empty(entry.shape, "<u4")
            np.left_shift(values, np.uint32(16), out=wide, dtype=np.uint32)
            return wide.view("<f4")
        return values.astype("<f4") if entry.dtype_name == "F16" else values

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """Look for NaN and infinity in the named tensors (None: all), each once, through a buffer of 1 MiB.

        Reads the file rather than the mapping, so that memory does not grow. Raises CheckpointError.
        """
        buffer: Array | None = None
        for name in self.entries if names is None else names:
            entry = self.entries[name]
            if name in self._finite or (entry.dtype.kind != "f" and entry.dtype_name != "BF16"):
                continue
            buffer = np.empty(_SCAN_BYTES, np.uint8) if buffer is None else buffer
            for begin in range(entry.begin, entry.end, _SCAN_BYTES):
                piece = buffer[: min(_SCAN_BYTES, entry.end - begin)]
                self._file.read_at(self._data_start + begin, piece.data)
                if not _all_finite(piece, entry):
                    self._file.refuse(f"tensor '{name}' holds NaN or infinity")
            self._finite.add(name)
        self._file.check_unchanged()

    def _view(self, entry: TensorEntry) -> Array:
        begin = self._data_start + entry.begin
        raw = self._buffer[begin : self._data_start + entry.end]
        if begin % entry.dtype.itemsize:
            raw = raw.copy()  # allowed by the format, slow or fatal for kernels
        return raw.view(entry.dtype).reshape(entry.shape)


def map_tensors(folder: UntrustedFolder, name: str) -> MappedTensors:
    """Check the safetensors file `name` and map it.

    Raises CheckpointError naming the file and the rule for anything but exactly one well-formed file (header
    over 8 MiB, deeper than 64 or of over 30,000 tensors; gaps, overlaps, trailing bytes; a shape that does
    not fit; a name that is not letters, digits and `_.-`); StorageError when the system cannot map it.
    """
    file = folder.open(name)
    prefix = file.read(0, min(LENGTH_BYTES, file.size_bytes))
    text = file.read(LENGTH_BYTES, header_length(prefix, file.size_bytes, file.label))
    data_start = LENGTH_BYTES + len(text)
    entries = parse_table(text, file.size_bytes - data_start, file.label, DTYPES_WITH_BF16)
    if len(entries) > MAX_TENSORS:
        file.refuse(f"has {len(entries)} tensors, over the limit of {MAX_TENSORS}")
    for entry in entries:
        if not _NAME.fullmatch(entry.name) or ".." in entry.name:
            file.refuse(f"{shown(entry.name)} is not the name of a tensor (letters, digits, '_', '.', '-')")
    return MappedTensors(file, entries, data_start)


def _map(file: OpenFile) -> npt.NDArray[np.uint8]:
    try:
        # Copy-on-write: writable for training in place, while the file stays as it is.
        region = mmap.mmap(file.handle, file.size_bytes, access=mmap.ACCESS_COPY)
    except (OSError, ValueError, OverflowError) as error:
        file.check_unchanged()
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{file.label}: cannot be mapped into memory: {reason}") from None
    return np.frombuffer(region, np.uint8)


def _all_finite(piece: npt.NDArray[np.uint8], entry: TensorEntry) -> bool:
    exponent = _EXPONENT.get(entry.dtype_name)
    if exponent is None:
        return bool(np.isfinite(piece.view(entry.dtype)).all())
    return not bool(((piece.view("<u2") & exponent) == exponent).any())
