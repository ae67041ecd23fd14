"""An HDF5 file opened with every door shut: data sets of the root group, plain storage, checked sizes.

HDF5 can point outside the file (external and soft links, external storage, virtual data sets), ask the
library to load a plugin (any unknown filter), and promise sizes that its bytes do not back. None of these is
followed: links are looked at before anything is opened, and a data set's storage before its shape is used.
What remains is the HDF5 library parsing the file itself; see docs/howto/cerebras_model_zoo.md.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import MissingDependencyError, WaferGPTError
from wafergpt.hdf5.lz4 import decode_chunk
from wafergpt.units import MIB

Array = NDArray[Any]
Refuse = Callable[[str], NoReturn]

MAX_DATASETS = 100_000  # a 13B checkpoint with its optimiser has about 2,000
ANY_RATIO = 1100  # deflate packs at most 1032 to 1, LZ4 255 to 1: more is a promise, not data
_FREE_BYTES = 64 * MIB  # below this size the ratio does not matter
_MAX_CHUNK_BYTES = 256 * MIB  # of one chunk, which the library reads whole
_MAX_CHUNKS = 10_000_000
_GZIP, _SHUFFLE, _FLETCHER32, _LZF, _LZ4 = 1, 2, 3, 32000, 32004
# What h5py raises for a damaged file: it has no class of its own.
_LIBRARY_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
)
_FILTERS = {_GZIP: "gzip", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32", _LZF: "lzf", _LZ4: "lz4"}


def load_h5py() -> Any:
    """The library. Raises MissingDependencyError naming the extra."""
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("HDF5 files need h5py: pip install 'wafergpt[modelzoo]'") from None
    return h5py


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a data set lies in the file. `offset`: of contiguous bytes, None for chunks."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    chunks: tuple[int, ...] | None
    filters: tuple[int, ...]
    stored_itemsize: int  # bytes of an element in the file
    is_plain: bool  # the file's bytes are `dtype`'s: no conversion by the library

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """In the file, unpacked."""
        return self.n_values * self.stored_itemsize


class OpenedHDF5:
    """The data sets of an HDF5 file's root group, each checked before its first byte is read.

    `refuse` raises the caller's error with a reason; the file is named in front. `max_ratio` says how many
    times larger than its bytes in the file a data set may be (above 64 MiB): it bounds the memory of whoever
    reads whole ones. Use as a context manager, or
    keep the object for as long as arrays are wanted.
    """

    def __init__(self, path: Path, refuse: Refuse, *, max_ratio: int = ANY_RATIO) -> None:
        """Raises what `refuse` raises for anything but a regular HDF5 file, MissingDependencyError."""
        self.path = Path(path)
        self._refuse_reason = refuse
        self._max_ratio = max_ratio
        self._h5py = load_h5py()
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.refuse(f"cannot be read: {error.strerror or error}")
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            self.refuse("is not a regular file")
        self._file = open(handle, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self.size_bytes = status.st_size
        try:
            # A file object, not a name: the library never resolves a path relative to this file.
            self._h5 = self._h5py.File(self._file, "r")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            self._file.close()
            self.refuse(f"is not an HDF5 file: {_one_line(error)}")

    def __enter__(self) -> OpenedHDF5:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half made, or the interpreter is going
            self.close()

    def close(self) -> None:
        """Close the file; arrays already made stay valid."""
        self._h5.close()
        self._file.close()

    def refuse(self, reason: str) -> NoReturn:
        """Raise the caller's error, the file named."""
        self._refuse_reason(f"'{self.path}': {reason}")
        raise AssertionError("refuse must raise")

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn whatever the library raises into one line of ours."""
        try:
            yield
        except WaferGPTError:
            raise
        except _LIBRARY_ERRORS as error:
            self.refuse(f"{what}: {_one_line(error)}")

    def names(self) -> list[str]:
        """Names in the root group, in the library's order. Refuses links and too many names."""
        found = []
        with self._guarded("its names cannot be read"):
            links, n_links = self._h5.id.links, len(self._h5.id)
            if n_links > MAX_DATASETS:
                self.refuse(f"{n_links} names are over the limit of {MAX_DATASETS}")
            for raw in self._h5.id:
                name = raw.decode("utf-8")
                if links.get_info(raw).type != self._h5py.h5l.TYPE_HARD:
                    self.refuse(f"'{name:.80}' is a soft or external link; data must be in the file itself")
                found.append(name)
        return found

    def attribute(self, name: str, of: str | None = None, max_bytes: int = 16 * MIB) -> Any:
        """A scalar or text attribute of the file or a data set; None if there is none. Refuses large ones."""
        h5a, key = self._h5py.h5a, name.encode("utf-8")
        with self._guarded(f"the attribute '{name:.80}' cannot be read"):
            owner = self._h5.id if of is None else self._dataset(of)
            if not h5a.exists(owner, key):
                return None
            if h5a.open(owner, key).get_storage_size() > max_bytes:
                self.refuse(f"the attribute '{name:.80}' is larger than {max_bytes} bytes")
            holder = self._h5 if of is None else self._h5[of]
            value = holder.attrs[name]
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a data set that has passed every check."""
        return self._layout(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Its element type as stored."""
        return self._layout(name).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows `start` to `stop` of a data set; contiguous storage as a private copy-on-write map.

        Refuses what `shape` refuses, and storage that does not decode.
        """
        layout = self._layout(name)
        rows = layout.shape[0] if layout.shape else 1
        stop = rows if stop is None else min(stop, rows)
        with self._guarded(f"'{name}' cannot be read"):
            if layout.offset is not None and layout.is_plain and layout.n_values > 0:
                whole = np.memmap(
                    self._file, layout.dtype, mode="c", offset=layout.offset, shape=layout.shape or (1,)
                )
                array: Array = np.require(whole, requirements="A").reshape(layout.shape).view(np.ndarray)
                return array[start:stop] if layout.shape else array
            if _LZ4 in layout.filters:
                return self._read_lz4(name, layout, start, stop)
            data = self._h5[name]
            return np.asarray(data[start:stop] if layout.shape else data[()])

    def _dataset(self, name: str) -> Any:
        """The low-level data set, opened only if it is one and no link leads to it."""
        key = name.encode("utf-8")
        if "/" in name:
            self.refuse(f"'{name:.80}' is not a name of the root group")
        with self._guarded(f"'{name:.80}' is no data set"):
            if self._h5.id.links.get_info(key).type != self._h5py.h5l.TYPE_HARD:
                self.refuse(f"'{name:.80}' is a soft or external link; data must be in the file itself")
            return self._h5py.h5d.open(self._h5.id, key)

    def _layout(self, name: str) -> _Layout:
        """How `name` is stored; every check of this module has passed when this returns."""
        with self._guarded(f"'{name:.80}' is damaged"):
            layout, stored_bytes = self._described(name)
            self._check_sizes(name, layout, stored_bytes)
            return layout

    def _described(self, name: str) -> tuple[_Layout, int]:
        dataset = self._dataset(name)
        plist = dataset.get_create_plist()
        h5d = self._h5py.h5d
        kind = plist.get_layout()  # before the shape: a virtual one would open other files
        if kind not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            self.refuse(f"'{name}' is a virtual data set; data must be in the file itself")
        if plist.get_external_count():
            self.refuse(f"'{name}' keeps its data in another file")
        filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
        for number in filters:
            if number not in _FILTERS:
                known = ", ".join(_FILTERS.values())
                self.refuse(f"'{name}' is packed by filter {number}; read are {known}")
        if _LZ4 in filters and filters != (_LZ4,):
            self.refuse(f"'{name}' is packed by lz4 together with another filter, which is not read")
        try:
            dtype, shape = np.dtype(dataset.dtype), tuple(int(n) for n in dataset.shape)
        except (TypeError, ValueError) as error:
            self.refuse(f"'{name}' has a type that is not read: {_one_line(error)}")
        if dtype.hasobject or dtype.itemsize == 0:
            self.refuse(f"'{name}' holds {dtype}, not numbers")
        layout = _Layout(
            shape=shape,
            dtype=dtype,
            offset=dataset.get_offset() if kind == h5d.CONTIGUOUS else None,
            chunks=tuple(int(n) for n in plist.get_chunk()) if kind == h5d.CHUNKED else None,
            filters=filters,
            stored_itemsize=int(dataset.get_type().get_size()),
            is_plain=bool(dataset.get_type() == self._h5py.h5t.py_create(dtype)),
        )
        if _LZ4 in filters and not layout.is_plain:
            self.refuse(f"'{name}' is packed by lz4 and of a type that is not read")
        return layout, int(dataset.get_storage_size())

    def _check_sizes(self, name: str, layout: _Layout, stored_bytes: int) -> None:
        """What is promised must be backed by bytes. Python integers: no product of sizes can wrap."""
        n_bytes = layout.n_bytes
        if stored_bytes > self.size_bytes:
            self.refuse(f"'{name}' says it takes {stored_bytes} bytes of a file of {self.size_bytes}")
        if layout.chunks is None:
            if stored_bytes != n_bytes:
                self.refuse(
                    f"'{name}' of shape {list(layout.shape)} needs {n_bytes} bytes and has {stored_bytes}"
                )
            if layout.offset is not None and n_bytes and layout.offset + n_bytes > self.size_bytes:
                self.refuse(f"'{name}' runs over the end of the file")
            return
        if n_bytes > max(_FREE_BYTES, self._max_ratio * stored_bytes):
            self.refuse(f"'{name}' promises {n_bytes} bytes and has {stored_bytes}")
        chunk_bytes = math.prod(layout.chunks) * layout.stored_itemsize
        if chunk_bytes > _MAX_CHUNK_BYTES or chunk_bytes > max(_FREE_BYTES, 4 * n_bytes):
            self.refuse(f"'{name}' has chunks of {chunk_bytes} bytes")
        n_chunks = math.prod(-(-n // size) for n, size in zip(layout.shape, layout.chunks, strict=True))
        if n_chunks > _MAX_CHUNKS:
            self.refuse(f"'{name}' has {n_chunks} chunks, over the limit of {_MAX_CHUNKS}")

    def _read_lz4(self, name: str, layout: _Layout, start: int, stop: int) -> Array:
        """Rows of a data set whose chunks are packed by LZ4; missing chunks hold zeros."""
        assert layout.chunks is not None
        dataset = self._dataset(name)
        out = np.zeros((stop - start, *layout.shape[1:]), layout.dtype)
        chunk_bytes = math.prod(layout.chunks) * layout.dtype.itemsize
        for corner in _corners(layout, start, stop):
            info = dataset.get_chunk_info_by_coord(corner)
            if info.byte_offset is None or info.size == 0:
                continue
            _, data = dataset.read_direct_chunk(corner)
            raw = data if info.filter_mask & 1 else decode_chunk(data, chunk_bytes)
            if len(raw) != chunk_bytes:
                self.refuse(f"'{name}' has a chunk of {len(raw)} bytes, not {chunk_bytes}")
            chunk = np.frombuffer(raw, layout.dtype).reshape(layout.chunks)
            first = max(corner[0], start)
            last = min(corner[0] + layout.chunks[0], stop)
            inner = tuple(
                slice(c, min(c + size, full))
                for c, size, full in zip(corner[1:], layout.chunks[1:], layout.shape[1:], strict=True)
            )
            part = tuple(slice(0, s.stop - s.start) for s in inner)
            out[(slice(first - start, last - start), *inner)] = chunk[
                (slice(first - corner[0], last - corner[0]), *part)
            ]
        return out


def _corners(layout: _Layout, start: int, stop: int) -> Iterator[tuple[int, ...]]:
    """First element of every chunk that holds a row from `start` to `stop`."""
    assert layout.chunks is not None
    first = start // layout.chunks[0] * layout.chunks[0]
    counts = [range(first, stop, layout.chunks[0])]
    counts += [range(0, n, size) for n, size in zip(layout.shape[1:], layout.chunks[1:], strict=True)]
    return itertools.product(*counts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
