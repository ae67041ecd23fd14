"""Build and load the native inference library: `cpu/native/`, every instruction set in one file (no torch).

Each source is compiled for the instruction set it is named after, and the library chooses at run time, so the
result runs on any x86-64 CPU and is named by a hash of sources and flags alone: a machine that has lost its
compiler still loads what it has built. Unlike `build`'s library it uses no OpenMP.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

from wafergpt.kernels import build
from wafergpt.kernels.build import KernelStatus

SOURCE_DIR = build.SOURCE_DIR / "native"

# -ffp-contract=off: a product is fused with a sum exactly where the source says so, the same in every
# function, because rows must not depend on which of them computed them.
FLAGS = [
    *(
        "-O3",
        "-std=c++17",
        "-fPIC",
        "-pthread",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-fno-math-errno",
    ),
    *("-Wall", "-Wextra", "-Wno-maybe-uninitialized"),  # GCC 12's own intrinsics headers trip that one
]

_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma")
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "isa_avx2": ("-mavx2", "-mfma"),
    "isa_avx512_vnni": (*_AVX512, "-mprefer-vector-width=512"),
    "isa_avx512": (*_AVX512, "-mavx512bf16", "-mprefer-vector-width=512"),
    "isa_amx": (
        *_AVX512,
        *("-mavx512bf16", "-mprefer-vector-width=512"),
        *("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
}
# Left out where compiler or assembler do not know the instructions (before GCC 11, binutils 2.34).
OPTIONAL = ("isa_amx",)


def sources() -> dict[Path, list[str]]:
    """Every source file with the flags it is compiled with."""
    return {path: [*FLAGS, *ISA_FLAGS.get(path.stem, ())] for path in sorted(SOURCE_DIR.glob("*.cpp"))}


def library_path() -> Path:
    """Where the library of these sources and flags is or will be."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr([(path.name, flags) for path, flags in sources().items()]).encode())
    return build.cache_dir() / f"wafergpt-native-{digest.hexdigest()[:16]}.so"


def _knows(compiler: str, stem: str) -> bool:
    """Whether the compiler takes the flags of an optional source, and its assembler a tile instruction."""
    done = subprocess.run(
        [compiler, *ISA_FLAGS[stem], "-x", "c++", "-c", "-", "-o", os.devnull],
        input='void f() { asm volatile("tilerelease"); }\n',
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0


def _compile(compiler: str, path: Path) -> str:
    """Build the library, without the sources that this compiler cannot make; an error text or ''."""
    wanted = sources()
    unknown = [stem for stem in OPTIONAL if not _knows(compiler, stem)]
    return build.compile_library(
        compiler, path, {source: flags for source, flags in wanted.items() if source.stem not in unknown}
    )


def _load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None if it is damaged, so that it must be built anew."""
    try:
        library = build.open_library(path)
        library.wn_page_tokens.restype = ctypes.c_int64
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
            problem = _compile(compiler, path)
            if problem:
                return absent(problem, compiler)
            library = _load(path)
            if library is None:
                return absent(f"cannot load '{path}'", compiler)
    except OSError as error:
        return absent(f"cannot build or load the native library: {error}", compiler)
    return library, KernelStatus(available=True, path=path, compiler=compiler, reason="")


def library() -> ctypes.CDLL | None:
    """The loaded library, built on the first call; None when it cannot be had (see `status`)."""
    return _resolve()[0]


def status() -> KernelStatus:
    """Whether the native library is there and why not; builds it on the first call."""
    return _resolve()[1]
