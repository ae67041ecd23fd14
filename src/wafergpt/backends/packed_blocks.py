"""The bytes of a packed file: brought to memory and hashed by blocks, which the machine's cores share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

_BLOCK_BYTES = 1 << 22
_READERS = 4  # threads that read and hash, at most


class BlockDigest:
    """The SHA-256 of the SHA-256s of blocks, of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._done, self._block, self._n_bytes = hashlib.sha256(), hashlib.sha256(), 0

    def update(self, data: memoryview) -> None:
        """Take what follows."""
        while len(data):
            part = data[: _BLOCK_BYTES - self._n_bytes]
            self._block.update(part)
            self._n_bytes += len(part)
            data = data[len(part) :]
            if self._n_bytes == _BLOCK_BYTES:
                self._close()

    def digest(self) -> bytes:
        """Of everything; nothing may follow."""
        if self._n_bytes:
            self._close()
        return self._done.digest()

    def _close(self) -> None:
        self._done.update(self._block.digest())
        self._block, self._n_bytes = hashlib.sha256(), 0


def mapped_file(file: BinaryIO, size: int) -> mmap.mmap:
    """The file's own pages, shared with every process that maps it."""
    return mmap.mmap(file.fileno(), size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)


def memory_of(size: int) -> mmap.mmap:
    """So many bytes of 0 from a page's start on, resident once touched, in huge pages where there are some.

    NumPy's own arrays begin 16 bytes after one: each vector then lies in two lines of the caches.
    """
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages: small ones then
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def in_huge_pages(file: BinaryIO, size: int, verify: bool) -> tuple[mmap.mmap, bool]:
    """The file's bytes in memory of our own, and whether they are right; OSError if the file ends early."""
    memory = memory_of(size)
    view = memoryview(memory)

    def read(begin: int, end: int) -> None:
        while begin < end:
            n_read = os.preadv(file.fileno(), [view[begin:end]], begin)
            if not n_read:
                raise OSError(errno.EIO, "the file ended early")
            begin += n_read

    return memory, _in_blocks(view, read, verify)


def is_whole(view: memoryview) -> bool:
    """Whether the last 32 bytes are the hash of those before them."""
    return _in_blocks(view, lambda begin, end: None, True)


def _in_blocks(view: memoryview, read: Callable[[int, int], None], verify: bool) -> bool:
    """`read` every block of `view` and hash it while it is in the caches; as `is_whole`.

    In some threads: both let go of Python's lock. Raises what `read` raised.
    """
    n_bytes = len(view) - 32
    blocks = range(0, n_bytes, _BLOCK_BYTES)
    digests, failures = [b""] * len(blocks), list[BaseException]()

    def work(first: int) -> None:
        try:
            for i in range(first, len(blocks), n_threads):
                end = min(blocks[i] + _BLOCK_BYTES, n_bytes)
                read(blocks[i], end)
                if verify:
                    digests[i] = hashlib.sha256(view[blocks[i] : end]).digest()
        except BaseException as error:
            failures.append(error)

    n_threads = max(1, min(_READERS, len(os.sched_getaffinity(0)), len(blocks)))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, n_threads)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    read(n_bytes, len(view))
    return not verify or hashlib.sha256(b"".join(digests)).digest() == view[n_bytes:]
