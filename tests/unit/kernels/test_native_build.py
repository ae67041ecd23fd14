"""Building the native library: one file for every CPU, loaded without a compiler once it is there."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wafergpt.kernels import build, native, native_build

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler here")
TINY_SOURCE = 'extern "C" __attribute__((visibility("default"))) long wn_page_tokens() { return 32; }\n'


@pytest.fixture
def tiny_sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "tiny.cpp").write_text(TINY_SOURCE, encoding="utf-8")
    return folder


def resolve(cache: Path, sources: Path, **environment: str) -> tuple[bool, str, str]:
    """(available, path, reason) of a fresh process without torch that builds `sources` in `cache`."""
    program = f"""
        import sys
        from pathlib import Path
        from wafergpt.kernels import native_build
        native_build.SOURCE_DIR = Path({str(sources)!r})
        status = native_build.status()
        assert (native_build.library() is not None) == status.available
        assert "torch" not in sys.modules and "numpy" not in sys.modules
        print(status.available, status.path, status.reason, sep="|")
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WAFERGPT_") and k != "CXX"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**variables, "WAFERGPT_CACHE": str(cache), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    available, path, reason = done.stdout.strip().split("|", 2)
    return available == "True", path, reason


@needs_compiler
def test_once_built_it_needs_no_compiler(tmp_path: Path, tiny_sources: Path) -> None:
    available, path, _ = resolve(tmp_path / "cache", tiny_sources)
    assert available
    assert resolve(tmp_path / "cache", tiny_sources, PATH=str(tmp_path)) == (True, path, "")
    Path(path).write_bytes(b"\x7fELF")  # damaged
    assert resolve(tmp_path / "cache", tiny_sources) == (True, path, "")


def test_reasons(tmp_path: Path, tiny_sources: Path) -> None:
    available, _, reason = resolve(tmp_path / "cache", tiny_sources, PATH=str(tmp_path))
    assert not available and reason.startswith("no C++ compiler; install one")
    available, _, reason = resolve(tmp_path, tiny_sources, WAFERGPT_KERNELS="off")
    assert (available, reason) == (False, "switched off by WAFERGPT_KERNELS")
    false = shutil.which("false")
    assert false is not None
    assert resolve(tmp_path, tiny_sources, CXX=false)[2] == f"{false} failed: no message"
    (tmp_path / "file").write_text("", encoding="utf-8")
    reason = resolve(tmp_path / "file", tiny_sources, CXX=false)[2]
    assert reason.startswith("cannot build or load the native library: ")


@needs_compiler
def test_a_compiler_without_amx_leaves_it_out(tmp_path: Path) -> None:
    """A wrapper that refuses AMX's flags as GCC 10 does: the rest is built, and what is missing is said."""
    compiler, wrapper = build.find_compiler(), tmp_path / "old-g++"
    wrapper.write_text(
        f"""#!/bin/sh
for flag; do case "$flag" in -mamx*) echo "unrecognized command-line option '$flag'" >&2; exit 1;; esac; done
exec {compiler} "$@"
""",
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    sources = tmp_path / "sources"
    sources.mkdir()
    weak = 'extern "C" __attribute__((weak)) long amx();\n'
    has = 'extern "C" __attribute__((visibility("default"))) long has() { return amx != nullptr; }\n'
    (sources / "tiny.cpp").write_text(weak + TINY_SOURCE + has, encoding="utf-8")
    (sources / "isa_amx.cpp").write_text('extern "C" long amx() { return 1; }\n', encoding="utf-8")
    for cxx, expected in ((str(wrapper), 0), (str(compiler), 1)):
        available, path, reason = resolve(tmp_path / str(expected), sources, CXX=cxx)
        assert available, reason
        assert ctypes.CDLL(path).has() == expected


def test_each_instruction_set_is_compiled_for_itself_alone() -> None:
    flags = {path.stem: set(flags) for path, flags in native_build.sources().items()}
    assert {f"isa_{name}" for name in native.ISAS} == {stem for stem in flags if stem.startswith("isa_")}
    wide = {stem for stem, f in flags.items() if any(flag.startswith("-mavx") for flag in f)}
    assert wide == {f"isa_{name}" for name in native.ISAS if name != "scalar"}, (
        "everything else runs on any x86-64"
    )
    every = set.union(*flags.values())
    assert not {"-march=native", "-ffast-math", "-Ofast", "-fopenmp", "-fassociative-math"} & every
    assert all("-ffp-contract=off" in f for f in flags.values())


@needs_compiler
def test_no_code_for_one_instruction_set_is_shared_with_another() -> None:
    """Weak symbols of a file compiled for AVX-512 could be the ones the linker keeps for everybody."""
    path = native_build.status().path
    assert path is not None
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("no nm here")
    for source in native_build.SOURCE_DIR.glob("simd_*.h"):
        assert "namespace {" in source.read_text(encoding="utf-8")
    for source in native_build.SOURCE_DIR.glob("isa_*.cpp"):
        text = source.read_text(encoding="utf-8")
        assert re.findall(r"#include [\"<](\S+)[\">]", text) == [
            re.search(r"simd_\w+\.h", text)[0],
            *(["attention_tiles.h", "product_tiles.h"] if source.stem == "isa_amx" else ["attention.h"]),
        ]
    for header in (
        "kernel.h",
        "ends.h",
        "pointwise.h",
        "product.h",
        "attention.h",
        "tiles.h",
        "product_tiles.h",
    ):
        text = (native_build.SOURCE_DIR / header).read_text(encoding="utf-8")
        assert not re.search(r"#include <(algorithm|vector|string|cmath)>", text), (
            "templates of the library's"
        )


def test_what_python_calls_is_defined() -> None:
    folder = native_build.SOURCE_DIR
    sources = "".join(p.read_text(encoding="utf-8") for p in folder.glob("*.cpp"))
    defined = set(re.findall(r"^[\w*]+ \*?(wn_\w+)\(", sources, re.MULTILINE))
    package = Path(native.__file__).parent
    called = set(re.findall(r"\"(wn_\w+)\"", (package / "native.py").read_text(encoding="utf-8")))
    assert called and called <= defined
