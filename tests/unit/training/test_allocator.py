"""The allocator keeps freed memory, and leaves a user's own settings alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from wafergpt.training.allocator import keep_freed_memory

def faults(n_rounds: int) -> int:
    import ctypes
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_rounds):
        block = libc.malloc(ctypes.c_size_t(SIZE))
        ctypes.memset(block, 1, SIZE)
        libc.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

SIZE = 96 * 2**20
default = faults(4)
took = keep_freed_memory() and keep_freed_memory()
faults(1)  # the heap grows
print(took, default, faults(4))
"""


def run(**environment: str) -> tuple[bool, int, int]:
    """(took, page faults of four 96 MB blocks by default, and after the call) in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env={**clean, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    took, default, kept = done.stdout.split()
    return took == "True", int(default), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_blocks_are_not_faulted_in_again() -> None:
    """Four blocks fault in 4 x 96 MB by default, at most 2 MB a fault; kept, next to nothing."""
    took, default, kept = run()
    assert took
    assert default >= 4 * 96 // 2
    assert kept < 20


@pytest.mark.parametrize(
    "settings",
    [{"MALLOC_TOP_PAD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296"}],
    ids=["MALLOC_", "GLIBC_TUNABLES"],
)
def test_a_users_own_settings_stay(settings: dict[str, str]) -> None:
    assert run(**settings)[0] is False
