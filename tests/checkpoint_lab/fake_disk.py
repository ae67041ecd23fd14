"""A file system in memory that can crash, reorder, tear, zero and fail at any call.

Real power loss cannot be had in a test; this is the model. A write reaches the cache; only fsync of that file
makes it durable. A name (create, rename, unlink) reaches the cached directory; only fsync of that directory
makes it durable. A crash keeps, independently, any subset of what was not yet durable: writes whole, torn at
512-byte sectors, or as zeros; name operations in any subset (each rename atomic, as journalling file systems
give). After a failed fsync the lost pages count as clean, so fsyncing again "succeeds" and saves nothing, as
on Linux.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

from wafergpt.checkpoints.files import Kind
from wafergpt.errors import RunLockedError

SECTOR_BYTES = 512
MUTATIONS = ("mkdir", "open_new", "write", "fsync", "rename", "unlink", "rmdir")


class Crash(BaseException):
    """The power went; nothing after this reaches the disk."""


class File:
    def __init__(self, durable: bytes = b"") -> None:
        self.data = bytearray(durable)
        self.durable = durable
        self.pending: list[tuple[int, bytes]] = []

    def after_crash(self, rng: random.Random) -> File:
        if not self.pending:
            return File(self.durable)
        data, keep = bytearray(self.durable), rng.choice((0.0, 0.5, 1.0))
        for offset, written in self.pending:
            fate = rng.choice(("whole", "whole", "torn", "zeros")) if rng.random() < keep else "dropped"
            if fate == "dropped":
                continue
            data.extend(bytes(max(0, offset + len(written) - len(data))))
            if fate == "whole":
                data[offset : offset + len(written)] = written
            elif fate == "torn":
                for start in range(0, len(written), SECTOR_BYTES):
                    if rng.random() < 0.5:
                        sector = written[start : start + SECTOR_BYTES]
                        data[offset + start : offset + start + len(sector)] = sector
        return File(bytes(data))


class Directory:
    def __init__(self, durable: dict[str, File | Directory] | None = None) -> None:
        self.entries: dict[str, File | Directory] = dict(durable or {})
        self.durable = dict(durable or {})
        self.pending: list[dict[str, File | Directory | None]] = []

    def change(self, change: dict[str, File | Directory | None]) -> None:
        _apply(self.entries, change)
        self.pending.append(change)

    def after_crash(self, rng: random.Random) -> Directory:
        entries, keep = dict(self.durable), rng.choice((0.0, 0.5, 1.0))
        for change in self.pending:
            if rng.random() < keep:
                _apply(entries, change)
        return Directory({name: node.after_crash(rng) for name, node in entries.items()})


def _apply(entries: dict[str, File | Directory], change: dict[str, File | Directory | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class FakeDisk:
    """A `FileLayer`. Calls are numbered from 0; `log` holds (call, path) of each, `n_calls` their number.

    `crash_at`: raise Crash instead of that call. `fail_at`: number -> (errno, took_effect). `short_at`: that
    write takes half. `flip_at`: that write stores a wrong bit. `full_from`: from that call on nothing fits
    until it is set to None.
    """

    def __init__(self, root: Directory | None = None) -> None:
        self.root = root or Directory()
        self.log: list[tuple[str, Path]] = []
        self.crash_at: int | None = None
        self.fail_at: dict[int, tuple[int, bool]] = {}
        self.short_at: int | None = None
        self.flip_at: int | None = None
        self.full_from: int | None = None
        self.crashed = False
        self.handles: dict[int, tuple[File | Directory, list[int], Path]] = {}
        self.locked: set[Path] = set()
        self.before_call: dict[int, object] = {}  # number -> callable run once before that call
        self._next_handle = itertools.count(3)

    @property
    def n_calls(self) -> int:
        return len(self.log)

    def after_crash(self, rng: random.Random) -> FakeDisk:
        """One of the states the disk may be found in when the power went now."""
        return FakeDisk(self.root.after_crash(rng))

    def used_bytes(self, node: File | Directory | None = None) -> int:
        node = node or self.root
        if isinstance(node, File):
            return len(node.data)
        return sum(self.used_bytes(child) for child in node.entries.values())

    # -- the FileLayer

    def kind(self, path: Path) -> Kind:
        with self._call("kind", path):
            node = self._find(path)
            if node is None:
                return Kind.MISSING
            return Kind.FILE if isinstance(node, File) else Kind.DIRECTORY

    def list_directory(self, path: Path) -> list[str]:
        with self._call("list_directory", path):
            return sorted(self._directory(path).entries)

    def mkdir(self, path: Path) -> None:
        with self._call("mkdir", path):
            parent = self._directory(path.parent)
            if path.name in parent.entries:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            parent.change({path.name: Directory()})

    def open_new(self, path: Path) -> int:
        handle = -1
        with self._call("open_new", path):
            parent = self._directory(path.parent)
            if path.name in parent.entries:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            parent.change({path.name: File()})
            handle = self._open(parent.entries[path.name], path)
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        node, position, path = self.handles[handle]
        assert isinstance(node, File)
        taken = bytes(data)
        if self.short_at == self.n_calls and len(taken) > 1:
            taken = taken[: len(taken) // 2]
        if self.flip_at == self.n_calls:
            taken = taken[:-1] + bytes([taken[-1] ^ 1])
        with self._call("write", path):
            node.data[position[0] : position[0] + len(taken)] = taken
            node.pending.append((position[0], taken))
            position[0] += len(taken)
        return len(taken)

    def fsync(self, handle: int) -> None:
        node, _, path = self.handles[handle]
        try:
            with self._call("fsync", path):
                if isinstance(node, File):
                    data = bytearray(node.durable)
                    for offset, written in node.pending:
                        data.extend(bytes(max(0, offset + len(written) - len(data))))
                        data[offset : offset + len(written)] = written
                    node.durable = bytes(data)
                else:
                    for change in node.pending:
                        _apply(node.durable, change)
                node.pending.clear()
        except OSError:
            node.pending.clear()  # the kernel marks the lost pages clean: they will never be written
            raise

    def close(self, handle: int) -> None:
        _, _, path = self.handles.pop(handle)  # gone even when close reports an error
        with self._call("close", path):
            pass

    def rename(self, source: Path, target: Path) -> None:
        with self._call("rename", source):
            parent, destination = self._directory(source.parent), self._directory(target.parent)
            node = parent.entries.get(source.name)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            existing = destination.entries.get(target.name)
            if isinstance(existing, Directory) and existing.entries:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            if parent is destination:
                parent.change({source.name: None, target.name: node})
            else:  # this disk has one directory per file system
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def unlink(self, path: Path) -> None:
        with self._call("unlink", path):
            self._missing_check(path)
            self._directory(path.parent).change({path.name: None})

    def rmdir(self, path: Path) -> None:
        with self._call("rmdir", path):
            if self._directory(path).entries:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            self._directory(path.parent).change({path.name: None})

    def open_directory(self, path: Path) -> int:
        handle = -1
        with self._call("open_directory", path):
            handle = self._open(self._directory(path), path)
        return handle

    def open_read(self, directory: int, name: str) -> int:
        handle = -1
        node, _, path = self.handles[directory]
        with self._call("open_read", path / name):
            assert isinstance(node, Directory)
            child = node.entries.get(name)
            if not isinstance(child, File):
                code = errno.ENOENT if child is None else errno.EINVAL
                raise OSError(code, os.strerror(code))
            handle = self._open(child, path / name)
        return handle

    def size_bytes(self, handle: int) -> int:
        node, _, path = self.handles[handle]
        with self._call("size_bytes", path):
            assert isinstance(node, File)
            return len(node.data)

    def read_into(self, handle: int, buffer: memoryview) -> int:
        node, position, path = self.handles[handle]
        with self._call("read_into", path):
            assert isinstance(node, File)
            piece = node.data[position[0] : position[0] + len(buffer)]
            buffer[: len(piece)] = piece
            position[0] += len(piece)
        return len(piece)

    @contextlib.contextmanager
    def exclusive(self, path: Path) -> Iterator[None]:
        if path in self.locked:
            raise RunLockedError(f"'{path.parent}' is in use")
        self.locked.add(path)
        try:
            yield
        finally:
            self.locked.discard(path)

    # -- inside

    @contextlib.contextmanager
    def _call(self, name: str, path: Path) -> Iterator[None]:
        number = self.n_calls
        self.log.append((name, path))
        action = self.before_call.pop(number, None)
        if callable(action):
            action()
        if self.crashed or number == self.crash_at:
            self.crashed = True
            raise Crash
        growing = name in ("mkdir", "open_new", "write")
        if growing and self.full_from is not None and number >= self.full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        code, took_effect = self.fail_at.get(number, (0, False))
        if code and not took_effect:
            raise OSError(code, os.strerror(code))
        yield
        if code:
            raise OSError(code, os.strerror(code))

    def _open(self, node: File | Directory, path: Path) -> int:
        handle = next(self._next_handle)
        self.handles[handle] = (node, [0], path)
        return handle

    def _find(self, path: Path) -> File | Directory | None:
        node: File | Directory | None = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Directory):
                return None
            node = node.entries.get(part)
        return node

    def _missing_check(self, path: Path) -> None:
        if self._find(path) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _directory(self, path: Path) -> Directory:
        self._missing_check(path)
        node = self._find(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node
