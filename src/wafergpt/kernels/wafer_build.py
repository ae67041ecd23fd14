"""Build and load the native core of the wafer simulator: `cpu/wafer/` (no torch, no OpenMP, plain x86-64).

Named by a hash of sources and flags and built on first use, as `native_build` does it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

from wafergpt.kernels import build
from wafergpt.kernels.build import KernelStatus

SOURCE_DIR = build.SOURCE_DIR / "wafer"

# -ffp-contract=off: products are rounded before they are added, as the NumPy reference does it.
FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-fno-math-errno", "-Wall", "-Wextra"),
]


def library_path() -> Path:
    """Where the library of these sources and flags is or will be."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr(FLAGS).encode())
    return build.cache_dir() / f"wafergpt-wafer-{digest.hexdigest()[:16]}.so"


def _load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None if it is damaged, so that it must be built anew."""
    try:
        library = build.open_library(path)
        library.wm_run.restype = ctypes.c_int64
        library.wm_machine_bytes.restype = ctypes.c_int64
    except (OSError, AttributeError):
        return None
    return library


@functools.cache
def _resolve() -> tuple[ctypes.CDLL | None, KernelStatus]:
    def absent(reason: str, compiler: str | None = None) -> tuple[None, KernelStatus]:
        return None, KernelStatus(available=False, path=None, compiler=compiler, reason=reason)

    unwanted = build.why_not_here()
    if unwanted:
        return absent(unwanted)
    compiler = build.find_compiler()
    try:
        path = library_path()
        library = _load(path) if path.exists() else None
        if library is None:
            if compiler is None:
                return absent(build.NO_COMPILER)
            problem = build.compile_library(
                compiler, path, dict.fromkeys(sorted(SOURCE_DIR.glob("*.cpp")), FLAGS)
            )
            if problem:
                return absent(problem, compiler)
            library = _load(path)
            if library is None:
                return absent(f"cannot load '{path}'", compiler)
    except OSError as error:
        return absent(f"cannot build or load the wafer simulator's core: {error}", compiler)
    return library, KernelStatus(available=True, path=path, compiler=compiler, reason="")


def library() -> ctypes.CDLL | None:
    """The loaded library, built on the first call; None when it cannot be had (see `status`)."""
    return _resolve()[0]


def status() -> KernelStatus:
    """Whether the core is there and why not; builds it on the first call."""
    return _resolve()[1]
