"""The file layer: every operation that can lose data goes through these few calls.

`CheckpointStore` and `write_atomic` touch the disk only through a `FileLayer`. Production uses `OSFiles`;
tests substitute an in-memory file system that crashes, reorders, tears and fails at any call, so that
"survives a power cut" is something a test can show.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from wafergpt.checkpoints.lock import RunLock
from wafergpt.errors import StorageError
from wafergpt.units import MIB

# One piece of work: large enough that the per-call cost vanishes, small enough to stay in the L3 cache
# between hashing it and handing it to the kernel.
CHUNK_BYTES = 4 * MIB


class Kind(Enum):
    """What a name is, without following symbolic links."""

    MISSING = "missing"
    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "other"  # symbolic link, FIFO, device, socket


class FileLayer(Protocol):
    """The calls a checkpoint is written and read with; each raises OSError as the system call does."""

    def kind(self, path: Path) -> Kind: ...
    def list_directory(self, path: Path) -> list[str]: ...
    def mkdir(self, path: Path) -> None: ...
    def open_new(self, path: Path) -> int: ...
    def write(self, handle: int, data: memoryview) -> int: ...
    def fsync(self, handle: int) -> None: ...
    def close(self, handle: int) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def rmdir(self, path: Path) -> None: ...
    def open_directory(self, path: Path) -> int: ...
    def open_read(self, directory: int, name: str) -> int: ...
    def size_bytes(self, handle: int) -> int: ...
    def read_into(self, handle: int, buffer: memoryview) -> int: ...
    def exclusive(self, path: Path) -> contextlib.AbstractContextManager[object]: ...


class OSFiles:
    """The real file system. Never follows a symbolic link in the last component of what it opens."""

    def kind(self, path: Path) -> Kind:
        """What `path` itself is; a symbolic link counts as OTHER."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return Kind.MISSING
        if stat.S_ISREG(mode):
            return Kind.FILE
        return Kind.DIRECTORY if stat.S_ISDIR(mode) else Kind.OTHER

    def list_directory(self, path: Path) -> list[str]:
        """Names in `path`, sorted so that runs are reproducible."""
        return sorted(os.listdir(path))

    def mkdir(self, path: Path) -> None:
        """Create one directory; the parent must exist."""
        os.mkdir(path)

    def open_new(self, path: Path) -> int:
        """Open for writing a file that must not exist yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, handle: int, data: memoryview) -> int:
        """Write once; returns how many bytes the system took, which may be fewer than asked."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        """Force a file's data, or a directory's names, to the device."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close; the handle is gone even when this raises."""
        os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Atomically give `source` the name `target` in the same file system."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name that is not a directory."""
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def open_directory(self, path: Path) -> int:
        """Open a directory itself (refused if `path` is a symbolic link)."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def open_read(self, directory: int, name: str) -> int:
        """Open a regular file of an open directory; anything else (link, FIFO, device) raises OSError."""
        # O_NONBLOCK: opening a FIFO planted in place of a file must not hang before fstat refuses it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "is not a regular file", name)
        return handle

    def size_bytes(self, handle: int) -> int:
        """The real size of an open file."""
        return os.fstat(handle).st_size

    def read_into(self, handle: int, buffer: memoryview) -> int:
        """Read once into `buffer`; returns the number of bytes, 0 at the end of the file."""
        return os.readv(handle, [buffer])

    def exclusive(self, path: Path) -> contextlib.AbstractContextManager[object]:
        """Hold the writer lock at `path`. Raises RunLockedError when another process has it."""
        return RunLock(path.parent, name=path.name)


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """What a file must look like when it is read back."""

    size_bytes: int
    sha256: str


def write_synced(files: FileLayer, path: Path, chunks: Iterable[memoryview]) -> FileDigest:
    """Create `path`, write `chunks`, fsync and close it; hashes what it was given on the way.

    Raises OSError. After any error, a failed fsync above all, the file must be thrown away and written anew:
    the kernel may have marked the lost pages clean, so a second fsync would succeed and mean nothing.
    """
    sha256, size_bytes = hashlib.sha256(), 0
    handle = files.open_new(path)
    try:
        for chunk in chunks:
            sha256.update(chunk)
            size_bytes += chunk.nbytes
            while chunk.nbytes:
                n_written = files.write(handle, chunk)
                if n_written <= 0:
                    raise OSError(errno.EIO, "the system wrote nothing", str(path))
                chunk = chunk[n_written:]
        files.fsync(handle)
    except BaseException:
        with contextlib.suppress(OSError):
            files.close(handle)
        raise
    files.close(handle)
    return FileDigest(size_bytes=size_bytes, sha256=sha256.hexdigest())


def read_exactly(files: FileLayer, handle: int, buffer: memoryview) -> Iterator[memoryview]:
    """Fill `buffer` from an open file, yielding each piece as it arrives (so that it can be hashed).

    Raises OSError if the file ends early.
    """
    position = 0
    while position < buffer.nbytes:
        piece = buffer[position : position + CHUNK_BYTES]
        n_read = files.read_into(handle, piece)
        if n_read <= 0:
            raise OSError(errno.EIO, "the file ended early")
        yield piece[:n_read]
        position += n_read


def sync_directory(files: FileLayer, path: Path) -> None:
    """Make the names in `path` durable. Raises OSError."""
    handle = files.open_directory(path)
    try:
        files.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot fsync a directory and say so thus
            raise
    finally:
        files.close(handle)


def make_directories(files: FileLayer, path: Path) -> None:
    """Create `path` (free of symbolic links) and its missing parents, durably. Raises OSError."""
    missing = []
    while files.kind(path) is Kind.MISSING:
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            files.mkdir(directory)
            sync_directory(files, directory.parent)
        except FileExistsError:
            continue  # another process was faster and makes it durable
        except OSError:
            with contextlib.suppress(OSError):  # a second fsync would prove nothing: next time anew
                files.rmdir(directory)
            raise


def remove_tree(files: FileLayer, path: Path) -> None:
    """Remove `path` and all it holds, following no links. Raises OSError."""
    kind = files.kind(path)
    if kind is Kind.DIRECTORY:
        for name in files.list_directory(path):
            remove_tree(files, path / name)
        files.rmdir(path)
    elif kind is not Kind.MISSING:
        files.unlink(path)


def storage_error(action: str, error: OSError, consequence: str) -> StorageError:
    """One clear line for the user: what failed, why, and what is still safe."""
    failure = StorageError(f"{action}: {error.strerror or error}; {consequence}")
    failure.errno = error.errno
    return failure


_TEMPORARY_NAME = re.compile(r"\..+\.tmp-[0-9]+-[0-9a-f]{8}")  # what `write_atomic` writes first


def remove_temporaries(directory: Path, files: FileLayer | None = None) -> None:
    """Remove what killed `write_atomic`s left in `directory`; the caller must be its only writer.

    A file that cannot be removed stays: it harms nothing.
    """
    layer = files or OSFiles()
    with contextlib.suppress(OSError):
        for name in layer.list_directory(directory):
            if _TEMPORARY_NAME.fullmatch(name):
                layer.unlink(directory / name)


def write_atomic(path: Path, data: bytes, files: FileLayer | None = None) -> None:
    """Replace the file at `path` by `data`: afterwards it holds either all of the old or all of the new.

    Raises StorageError; the old content is then intact.
    """
    write_stream(path, [memoryview(data)], files)


def write_stream(path: Path, chunks: Iterable[memoryview], files: FileLayer | None = None) -> FileDigest:
    """`write_atomic` for content that is made piece by piece; returns its size and hash.

    Raises StorageError, and whatever `chunks` raises; the old content is then intact.
    """
    layer = files or OSFiles()
    path = path.parent.resolve() / path.name  # where a folder lives is its owner's choice, links included
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            digest = write_synced(layer, temporary, chunks)
            layer.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                layer.unlink(temporary)
            raise
        sync_directory(layer, path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(f"cannot write '{path}'", error, "what was there before is intact") from error
    return digest
