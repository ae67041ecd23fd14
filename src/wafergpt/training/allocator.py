"""Keep freed memory for the next step instead of giving it back to the system (no torch).

glibc maps every block above 32 MB anew and unmaps it when it is freed, so each step's logits and gradients
are faulted in page by page again: 600,000 minor faults a step of a 10M model with 50,257 logits were
counted so, 130 with the settings below, and a plain PyTorch loop went 1.7 times as fast
(docs/explanation/performance.md). The cost: the process keeps its largest size until it ends, and its
resident memory is about 1.4 times as high in such a loop.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# Parameters of mallopt and their values, /usr/include/malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20  # how much the heap grows at a time
_NEVER_TRIM = -1  # converted to the largest size_t


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large blocks from its heap and never to shrink it; whether it took.

    It holds for the whole process and cannot be undone. False, and nothing changed, with another C
    library, another allocator in its place, or settings of the user's own (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    if sys.platform != "linux" or _users_own_settings():
        return False
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_TOP_PAD, _TOP_PAD_BYTES))
    taken = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings]
    return taken == [1, 1, 1]


def _users_own_settings() -> bool:
    # MALLOC_ARENA_MAX is about threads and does not collide.
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in names) or any(
        f"glibc.malloc.{key}" in tunables for key in ("mmap", "trim", "top_pad")
    )
