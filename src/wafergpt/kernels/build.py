"""Build the C++ kernels with the machine's own compiler, once, and load them through ctypes.

The library has a plain C ABI and no torch inside. It is compiled for this very CPU on first use, kept
under the cache folder by a hash of sources, flags, compiler and CPU, and published by rename. Without a
compiler everything still works through torch; `status()` says which of the two it is and why, and
`wafergpt doctor` prints it. `WAFERGPT_KERNELS=off` refuses the kernels on purpose.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE_DIR = Path(__file__).parent / "cpu"
NO_COMPILER = "no C++ compiler; install one (Debian: apt-get install g++) and start again"

# No -ffast-math: non-finite values must survive, and denormals must not be flushed for the whole process.
FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-Wall", "-mprefer-vector-width=512"),
    *(
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fassociative-math",
        "-fno-signed-zeros",
        "-freciprocal-math",
    ),
]


@dataclass(frozen=True, kw_only=True)
class KernelStatus:
    """Whether the compiled kernels are in use; `reason` says why not (empty when they are)."""

    available: bool
    path: Path | None
    compiler: str | None
    reason: str


def cache_dir() -> Path:
    """The folder for built kernels: `$WAFERGPT_CACHE` or `~/.cache/wafergpt`, then `kernels`."""
    root = os.environ.get("WAFERGPT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "wafergpt") / "kernels"


def find_compiler() -> str | None:
    """Path of `$CXX`, else of g++ or c++, if one is installed."""
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them (avx2, avx512f, avx512_bf16, amx_bf16, ...)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _library_path(compiler: str) -> Path:
    digest = hashlib.sha256()
    for source in sorted(SOURCE_DIR.iterdir()):
        if source.suffix in (".cpp", ".h"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest.update(repr((FLAGS, version, platform.machine(), sorted(cpu_flags()))).encode())
    return cache_dir() / f"wafergpt-{digest.hexdigest()[:16]}.so"


def compile_library(compiler: str, target: Path, sources: Mapping[Path, Sequence[str]]) -> str:
    """Compile each source with its flags, link, publish as `target` by rename; an error text or ''."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if sys.stderr.isatty():
        print(f"note: building {target.stem}, once for this machine (some 20 s)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        jobs = []
        for source, flags in sources.items():
            built = Path(scratch) / (source.stem + ".o")
            command = [compiler, *flags, "-c", str(source), "-o", str(built)]
            jobs.append((built, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
        errors = [job.communicate()[1] for _, job in jobs]
        failed = [text for (_, job), text in zip(jobs, errors, strict=True) if job.returncode != 0]
        if failed:
            return f"{compiler} failed: {(failed[0].strip() or 'no message').splitlines()[0]}"
        library = Path(scratch) / target.name
        # Linked without libgomp: its symbols bind to the OpenMP that torch has loaded (see `_load`).
        common = [flag for flag in next(iter(sources.values())) if flag.startswith("-fsanitize")]
        link = [compiler, "-shared", *common, "-o", str(library), *(str(built) for built, _ in jobs)]
        done = subprocess.run(link, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{compiler} failed to link: {done.stderr.strip()[:300]}"
        with library.open("rb") as file:  # on the disk before it has its name
            os.fsync(file.fileno())
        os.replace(library, target)
    return ""


def _compile(compiler: str, target: Path) -> str:
    """Build the library of `SOURCE_DIR`; returns an error text or ''."""
    return compile_library(compiler, target, dict.fromkeys(sorted(SOURCE_DIR.glob("*.cpp")), FLAGS))


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library; raises OSError for a damaged one.

    The loader itself ends the process (SIGBUS) over a file that was cut short. ld writes the table of
    sections last, so a file that ends before its end is not whole.
    """
    with path.open("rb") as file:
        header = file.read(64)  # of 64-bit ELF: the table's offset at 40, a row's size at 58, its rows at 60
        size = os.fstat(file.fileno()).st_size
    offset, row, n_rows = (
        int.from_bytes(header[at : at + n], "little") for at, n in ((40, 8), (58, 2), (60, 2))
    )
    if size < 64 or size < offset + row * n_rows:
        raise OSError(errno.EIO, "the library is cut short", str(path))
    return ctypes.CDLL(str(path))


def _load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None if it is damaged or another machine's, so that it must be built anew."""
    # Two OpenMP runtimes in one process would fight for the cores, so the kernels share torch's.
    if "torch" not in sys.modules:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    try:
        library = open_library(path)
        library.wg_sum_of_squares.restype = ctypes.c_double
    except (OSError, AttributeError):
        return None
    return library


def why_not_here() -> str:
    """Why no kernels can be used on this machine or are not wanted; '' if nothing stands against them."""
    if os.environ.get("WAFERGPT_KERNELS", "").lower() in ("off", "0", "no"):
        return "switched off by WAFERGPT_KERNELS"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    return ""


@functools.cache
def _resolve() -> tuple[ctypes.CDLL | None, KernelStatus]:
    def absent(reason: str, compiler: str | None = None) -> tuple[None, KernelStatus]:
        return None, KernelStatus(available=False, path=None, compiler=compiler, reason=reason)

    unwanted = why_not_here()
    if unwanted:
        return absent(unwanted)
    compiler = find_compiler()
    if compiler is None:
        return absent(NO_COMPILER)
    try:
        path = _library_path(compiler)
        library = _load(path) if path.exists() else None
        if library is None:
            problem = _compile(compiler, path)
            if problem:
                return absent(problem, compiler)
            library = _load(path)
            if library is None:
                return absent(f"cannot load '{path}'", compiler)
    except OSError as error:
        return absent(f"cannot build or load the kernels: {error}", compiler)
    return library, KernelStatus(available=True, path=path, compiler=compiler, reason="")


def library() -> ctypes.CDLL | None:
    """The loaded kernel library, built on the first call; None when it cannot be had (see `status`)."""
    return _resolve()[0]


def status() -> KernelStatus:
    """Whether kernels are in use and why not; builds them on the first call."""
    return _resolve()[1]
