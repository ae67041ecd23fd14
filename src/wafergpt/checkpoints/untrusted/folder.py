"""A model folder nobody vouches for: plain files, opened by handle inside it, bounded, unchanged while read.

The folder itself is the user's choice, so a link to it is followed. Inside, one kind of link is: the hub
cache's own, `snapshots/<revision>/<file> -> ../../blobs/<hash>` below a folder `models--...`. Archives are
never unpacked.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from wafergpt.checkpoints.untrusted.json_text import MAX_DEPTH, MAX_VALUES, check_text, parse_json
from wafergpt.errors import CheckpointError, StorageError, shown
from wafergpt.units import GIB, MIB, format_bytes

MAX_FILES = 10_000  # entries of one folder
MAX_JSON_BYTES = MIB  # config.json and its like have a few KB
_BLOB_LINK = re.compile(r"\.\./\.\./blobs/([0-9A-Za-z][0-9A-Za-z._-]{0,127})")
# A file that takes far less room than its length is mostly holes: a length that costs its author nothing.
# Sixteen leaves compressing file systems in peace; trained weights compress to half at best.
_SPARSE_BYTES = GIB
_SPARSE_RATIO = 16
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpenFile:
    """A regular file held open; `size_bytes` is what it had when it was opened. Closed when forgotten."""

    def __init__(self, handle: int, label: str) -> None:
        self._close = weakref.finalize(self, os.close, handle)
        self.handle = handle
        self.label = label  # names the file in messages
        status = os.fstat(handle)
        self.size_bytes = status.st_size
        self._stamp = (status.st_size, status.st_mtime_ns)
        self._check_kind(status)

    def _check_kind(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self.refuse(f"is not a regular file but a {_kind(status.st_mode)}")
        # No hub client links files hard. Such a name can show a private file as if it were the model's.
        if status.st_nlink > 1:
            self.refuse(f"has {status.st_nlink} hard links; copy the folder (cp -r) to use it")
        on_disk = status.st_blocks * 512
        if self.size_bytes > _SPARSE_BYTES and 0 < on_disk * _SPARSE_RATIO < self.size_bytes:
            size, taken = format_bytes(self.size_bytes), format_bytes(on_disk)
            self.refuse(f"is sparse: it claims {size} and takes {taken} on disk")

    def refuse(self, reason: str) -> NoReturn:
        """Raise CheckpointError: the file and the rule it breaks."""
        raise CheckpointError(f"{self.label}: {reason}")

    def read_at(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` on. Raises CheckpointError if the file ends early."""
        position = 0
        while position < buffer.nbytes:
            try:
                n_read = os.preadv(self.handle, [buffer[position:]], offset + position)
            except OSError as error:
                self.refuse(f"cannot be read: {error.strerror}")
            if n_read == 0:
                self.refuse("was changed while it was read: it ends early")
            position += n_read

    def read(self, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` from byte `offset` on. Raises CheckpointError if the file is shorter or was changed."""
        try:
            data = os.pread(self.handle, n_bytes, offset)  # no second copy: the system gives it all at once
        except OSError as error:
            self.refuse(f"cannot be read: {error.strerror}")
        if len(data) < n_bytes:
            self.refuse("was changed while it was read: it ends early")
        self.check_unchanged()
        return data

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file's length or time of change is not what it was at first."""
        status = os.fstat(self.handle)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            self.refuse("was changed while it was read")

    def close(self) -> None:
        """Close the handle now; mappings of the file stay valid."""
        self._close()


class UntrustedFolder:
    """Opens files of one folder by name. Raises CheckpointError naming the file and the rule it breaks.

    A context manager; without `with`, the handle is closed when the object is forgotten.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the folder at `path`. Raises CheckpointError if it is none or has over 10,000 entries."""
        self.path = Path(path)
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError:
            raise CheckpointError(
                f"'{self.path}' is not a folder; a model is a folder of files, archives are not unpacked"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"'{self.path}' cannot be opened: {reason}") from None
        self._close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        self._names = self._list()
        real = Path(os.path.realpath(self.path))
        self._is_snapshot = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder; files opened from it stay open."""
        self._close()

    def _list(self) -> dict[str, list[str]]:
        """Folded name -> the names that differ from it in case or composition only."""
        names: dict[str, list[str]] = {}
        with os.scandir(self._handle) as entries:
            for n, entry in enumerate(entries):
                if n >= MAX_FILES:
                    raise CheckpointError(f"'{self.path}' holds over {MAX_FILES} files")
                names.setdefault(_folded(entry.name), []).append(entry.name)
        return names

    def names(self) -> tuple[str, ...]:
        """Every name in the folder when it was opened, sorted; nothing is said about what they are."""
        return tuple(sorted(name for twins in self._names.values() for name in twins))

    def has(self, name: str) -> bool:
        """Whether the folder had an entry of exactly this name when it was opened."""
        return name in self._names.get(_folded(name), ())

    def open(self, name: str) -> OpenFile:
        """Open the regular file `name`.

        Raises CheckpointError for a name with a slash, a missing file, a link (but the hub cache's own), a
        FIFO or device, a second hard link, a name with a twin in other case, a sparse giant; StorageError
        when the machine has no handles or memory left.
        """
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise CheckpointError(f"'{self.path}': {shown(name)} is not the name of a file in it")
        label = f"{self.path}/{name}"
        twins = self._names.get(_folded(name), [])
        if len(twins) > 1:
            both = " and ".join(shown(twin) for twin in sorted(twins)[:2])
            raise CheckpointError(f"{label}: {both} differ in case only; which one is meant?")
        try:
            status = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return OpenFile(self._open_blob(name, label), label)
            if not stat.S_ISREG(status.st_mode):  # before opening: opening a device can act on it
                raise CheckpointError(f"{label}: is not a regular file but a {_kind(status.st_mode)}")
            return OpenFile(os.open(name, _FLAGS, dir_fd=self._handle), label)
        except OSError as error:
            raise _unreadable(label, error) from None

    def _open_blob(self, name: str, label: str) -> int:
        target = os.readlink(name, dir_fd=self._handle)
        blob = _BLOB_LINK.fullmatch(target)
        if blob is None or not self._is_snapshot:
            raise CheckpointError(f"{label}: is a symbolic link (only a hub cache's own links are followed)")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        blobs = os.open("../../blobs", flags, dir_fd=self._handle)
        try:
            return os.open(blob[1], _FLAGS, dir_fd=blobs)
        finally:
            os.close(blobs)

    def read_bytes(self, name: str, max_bytes: int) -> bytes:
        """The whole file. Raises CheckpointError as `open` does, or if it is longer than `max_bytes`."""
        file = self.open(name)
        try:
            if file.size_bytes > max_bytes:
                size, limit = format_bytes(file.size_bytes), format_bytes(max_bytes)
                file.refuse(f"has {size}, over the limit of {limit} for this file")
            return file.read(0, file.size_bytes)
        finally:
            file.close()

    def read_json(
        self,
        name: str,
        *,
        max_bytes: int = MAX_JSON_BYTES,
        max_depth: int = MAX_DEPTH,
        max_values: int = MAX_VALUES,
    ) -> dict[str, Any]:
        """The JSON object in `name`. Raises CheckpointError as `read_bytes` and `parse_json` do."""
        data = self.read_bytes(name, max_bytes)
        try:
            value = parse_json(data, max_depth=max_depth, max_values=max_values)
            check_text(data, value)
        except ValueError as error:
            raise CheckpointError(f"{self.path}/{name}: not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}/{name}: is not a JSON object")
        return value


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFLNK: "symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "device")


def _unreadable(label: str, error: OSError) -> CheckpointError | StorageError:
    if error.errno in _SHORTAGE:
        return StorageError(f"{label}: cannot be read: {error.strerror}")
    if error.errno == errno.ENOENT:
        return CheckpointError(f"{label}: is missing")
    if error.errno == errno.ELOOP:
        return CheckpointError(f"{label}: is a symbolic link")
    return CheckpointError(f"{label}: cannot be read: {error.strerror}")
