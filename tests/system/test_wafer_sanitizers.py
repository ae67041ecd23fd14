"""The simulator's tests and mutants again, its core checking every access and every undefined operation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.kernels import build, wafer_build

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/unit/wafer/machine",
    "tests/unit/wafer/programs",
    "tests/property/test_wafer_fuzz.py",
    "tests/parity/test_wafer_transformer.py::test_tokens_and_logits_are_torchs",
)
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1"]
PROGRAM = """
import sys
from pathlib import Path
from wafergpt.kernels import wafer_build
wafer_build.FLAGS = [*wafer_build.FLAGS, *{flags!r}]
wafer_build.SOURCE_DIR = Path({sources!r})
assert wafer_build.status().available, wafer_build.status().reason
import pytest
sys.exit(pytest.main(["-n0", "-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "not long", *{tests!r}]))
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler here"),
]


def run(cache: Path, sources: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
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
        timeout=1800,
    )


def test_nothing_is_found(tmp_path: Path) -> None:
    done = run(tmp_path, wafer_build.SOURCE_DIR, TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_an_overrun_is_found(tmp_path: Path) -> None:
    """Planted: a store that does not look whether its address is in the PE's memory."""
    sources = tmp_path / "sources"
    shutil.copytree(wafer_build.SOURCE_DIR, sources)
    core = sources / "core.cpp"
    text = core.read_text(encoding="utf-8")
    planted = text.replace("if (at < 0 || at + size > m.mem_bytes || (at & (size - 1))) {", "if (at < 0) {")
    assert planted != text
    core.write_text(planted, encoding="utf-8")
    done = run(tmp_path, sources, ("tests/unit/wafer/machine/test_program.py",))
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr
