"""The native tests again, in a process whose library checks every access and every undefined operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.kernels import build, native_build

ROOT = Path(__file__).parents[2]
TESTS = tuple(f"tests/parity/test_native_{name}.py" for name in ("kernels", "amx", "model"))
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1"]

PROGRAM = """
import sys
from pathlib import Path
from wafergpt.kernels import native_build
native_build.FLAGS = [*native_build.FLAGS, *{flags!r}]
native_build.SOURCE_DIR = Path({sources!r})
assert native_build.status().available, native_build.status().reason
import pytest
sys.exit(pytest.main(["-n0", "-q", "-x", "-s", "-p", "no:cacheprovider", *{tests!r}]))
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler here"),
]


def run(
    cache: Path, sources: Path = native_build.SOURCE_DIR, tests: tuple[str, ...] = TESTS
) -> subprocess.CompletedProcess[str]:
    """The tests in a child, built from `sources` with the sanitizers; -s: a dying process says its word."""
    compiler = build.find_compiler()
    assert compiler is not None
    asan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    if not Path(asan.stdout.strip()).is_absolute():
        pytest.skip("the compiler has no libasan")
    environment = {
        **os.environ,
        "WAFERGPT_CACHE": str(cache),
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
    }
    program = PROGRAM.format(flags=SANITIZE, tests=tests, sources=str(sources))
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_nothing_is_found(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_an_overrun_is_found(tmp_path: Path) -> None:
    """Planted: a LayerNorm that writes one vector beyond its row."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in native_build.SOURCE_DIR.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name == "pointwise.h":
            planted = text.replace("store_first(y + i, fma(normal", "store(y + i, fma(normal").replace(
                "load_first(bias + i, n)), n);", "load_first(bias + i, n)));"
            )
            assert planted != text
            text = planted
        (sources / path.name).write_text(text, encoding="utf-8")
    done = run(tmp_path / "cache", sources, (*TESTS[:1], "-k", "layer_norm"))
    assert done.returncode != 0 and "AddressSanitizer" in done.stdout + done.stderr
