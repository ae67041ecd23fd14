"""AMX kernels on a machine without AMX: their instructions trap and are carried out by amx_machine.cpp."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wafergpt.kernels import build, native, native_build

SOURCE = Path(__file__).with_name("amx_machine.cpp")


@functools.cache
def machine() -> ctypes.CDLL | None:
    """The library that carries out the instructions, active from then on.

    None where the CPU has AMX, or lacks the AVX-512 that the kernels need beside it, or nothing can be built.
    """
    compiler = build.find_compiler()
    if compiler is None or not native_build.status().available:
        return None
    supported, library = native.supported_isas(), native.load()
    if "amx" in supported or "avx512" not in supported or not library.wn_probe_has(b"amx"):
        return None
    flags = [*native_build.FLAGS, "-mfma"]
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(flags).encode()).hexdigest()[:16]
    path = build.cache_dir() / f"test-amx-machine-{digest}.so"
    if not path.exists():
        problem = build.compile_library(compiler, path, {SOURCE: flags})
        assert problem == "", problem
    found = ctypes.CDLL(str(path))
    found.amx_machine_count.restype = ctypes.c_int64
    found.amx_machine_start()
    return found


def choose_isa(name: str | None = None) -> str:
    """`native.choose_isa`, which also takes `amx` where `machine` carries out its instructions."""
    return "amx" if name == "amx" and machine() is not None else _choose_isa(name)


_choose_isa = native.choose_isa


@contextmanager
def planted(fault: int) -> Iterator[None]:
    """A faulty machine; amx_machine.cpp says which fault is which."""
    found = machine()
    assert found is not None
    found.amx_machine_plant(fault)
    try:
        yield
    finally:
        found.amx_machine_plant(0)
