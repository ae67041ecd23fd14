"""One writer per folder: an advisory lock that dies with its process.

`flock` is released by the kernel however the process ends, so a lock file left by a killed run never
blocks the next one; the process id inside it only serves the message.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from wafergpt.errors import RunLockedError, StorageError

LOCK_NAME = ".lock"


class RunLock:
    """Context manager: this process alone writes to `directory` (which must exist) while it is held.

    Raises RunLockedError, naming the holder's process id, when another holder is alive (this process
    included); StorageError when the lock file cannot be made. A lock left by a dead process is taken over.
    """

    def __init__(self, directory: Path, name: str = LOCK_NAME) -> None:
        self.path = Path(directory) / name
        self._handle: int | None = None

    def __enter__(self) -> Self:
        if self._handle is not None:
            raise RunLockedError(self._message(str(os.getpid())))
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise StorageError(f"cannot lock '{self.path.parent}': {error.strerror}") from error
        try:
            self._acquire(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        return self

    def _acquire(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(f"cannot lock '{self.path.parent}': {error.strerror}") from error
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            raise RunLockedError(self._message(holder)) from None
        # The kernel holds the lock already; on a full disk the id is missing and the lock still works.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)

    def _message(self, holder: str) -> str:
        process = f"process {holder}" if holder.isdigit() else "another process"
        return f"'{self.path.parent}' is in use by {process}; wait for it, stop it, or choose another folder"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing a lock file lets two later processes lock two different files.
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            self._close()

    def _close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _held.discard(self)
            os.close(handle)


# A forked child (a data-loading worker, say) shares its parent's flock and would keep the folder locked after
# the parent died; it closes its copy at once. Closing does not release the parent's lock.
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_close_in_child)
