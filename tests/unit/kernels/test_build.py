"""Building the kernels: reasons when it cannot, safe publication, no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wafergpt.kernels import build

COMPILER = shutil.which("g++") or shutil.which("c++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")

TINY_SOURCE = 'extern "C" double wg_sum_of_squares() { return 4.0; }\n'  # what `_load` asks of a library


@pytest.fixture
def tiny_sources(tmp_path: Path) -> Path:
    """A source folder that compiles in a moment."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "tiny.cpp").write_text(TINY_SOURCE, encoding="utf-8")
    return folder


def start(
    cache: Path, sources: Path | None = None, code: str = "", **environment: str
) -> subprocess.Popen[str]:
    """A process, without torch, that resolves the kernels in `cache` and prints `available|path|reason`."""
    program = f"""
        import sys
        from pathlib import Path
        from wafergpt.kernels import build
        {f"build.SOURCE_DIR = Path({str(sources)!r})" if sources else ""}
        {code}
        status = build.status()
        assert (build.library() is not None) == status.available
        assert "torch" not in sys.modules
        print(status.available, status.path, status.reason, sep="|")
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WAFERGPT_") and k != "CXX"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**variables, "WAFERGPT_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> tuple[bool, str, str]:
    """(available, path, reason) of a process that `start` started."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    available, path, reason = out.strip().split("|", 2)
    return available == "True", path, reason


def executable(path: Path, script: str) -> str:
    """A shell script at `path`."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_switched_off(tmp_path: Path) -> None:
    available, path, reason = outcome(start(tmp_path, WAFERGPT_KERNELS="off"))
    assert (available, path, reason) == (False, "None", "switched off by WAFERGPT_KERNELS")
    assert not any(tmp_path.iterdir())


def test_no_compiler(tmp_path: Path) -> None:
    available, _, reason = outcome(start(tmp_path / "cache", PATH=str(tmp_path)))
    assert not available
    assert reason.startswith("no C++ compiler; install one")


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    false = shutil.which("false")
    assert false is not None
    available, _, reason = outcome(start(tmp_path, CXX=false))
    assert (available, reason) == (False, f"{false} failed: no message")
    assert not list((tmp_path / "kernels").iterdir()), "a failed build leaves nothing"


def test_the_compilers_own_words_are_passed_on(tmp_path: Path, tiny_sources: Path) -> None:
    compiler = executable(tmp_path / "cxx", "echo 'tiny.cpp:1: no such thing' >&2; echo more >&2; exit 1")
    _, _, reason = outcome(start(tmp_path / "cache", tiny_sources, CXX=compiler))
    assert reason == f"{compiler} failed: tiny.cpp:1: no such thing"


@needs_compiler
def test_a_linker_that_fails(tmp_path: Path, tiny_sources: Path) -> None:
    script = f'case "$*" in *-shared*) echo "ld: no" >&2; exit 1;; *) exec {COMPILER} "$@";; esac'
    compiler = executable(tmp_path / "cxx", script)
    _, _, reason = outcome(start(tmp_path / "cache", tiny_sources, CXX=compiler))
    assert reason == f"{compiler} failed to link: ld: no"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    available, _, reason = outcome(start(tmp_path / "file", CXX=shutil.which("false") or ""))
    assert not available
    assert reason.startswith("cannot build or load the kernels: ")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64")])
def test_another_platform(tmp_path: Path, system: str, machine: str) -> None:
    code = f"sys.platform = {system!r}; import platform; platform.machine = lambda: {machine!r}"
    available, _, reason = outcome(start(tmp_path, code=code))
    assert not available
    assert reason == f"kernels are for Linux on x86-64, this is {system} on {machine}"


@needs_compiler
def test_concurrent_builds_publish_one_whole_library(tmp_path: Path, tiny_sources: Path) -> None:
    """Each process compiles beside the target, slowly, and renames: nobody ever loads half a file."""
    compiler = executable(tmp_path / "cxx", f'sleep 0.2; exec {COMPILER} "$@"')
    cache = tmp_path / "cache"
    found = [outcome(p) for p in [start(cache, tiny_sources, CXX=compiler) for _ in range(6)]]
    assert all(available for available, _, _ in found), found
    assert len({path for _, path, _ in found}) == 1
    assert [p.name for p in (cache / "kernels").iterdir()] == [Path(found[0][1]).name]


@needs_compiler
def test_a_build_that_publishes_in_place_is_caught(tmp_path: Path, tiny_sources: Path) -> None:
    """Planted: half a library under the final name, as a writer without rename leaves it for a while."""
    cache = tmp_path / "cache"
    available, path, _ = outcome(start(cache, tiny_sources))
    assert available
    Path(path).write_bytes(b"\x7fELF")
    available, again, reason = outcome(
        start(cache, tiny_sources, code="build._compile = lambda *_: 'refused'")
    )
    assert not available, "the check above would not notice half a library"
    assert reason == "refused"
    available, again, _ = outcome(start(cache, tiny_sources))
    assert available and again == path, "a damaged library in the cache is built anew"


@needs_compiler
def test_the_name_depends_on_sources_and_compiler(
    tmp_path: Path, tiny_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COMPILER is not None
    monkeypatch.setattr(build, "SOURCE_DIR", tiny_sources)
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path))
    plain = build._library_path(COMPILER)
    assert plain.parent == tmp_path / "kernels"
    assert build._library_path(COMPILER) == plain
    assert build._library_path(executable(tmp_path / "cxx", "echo another compiler")) != plain
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"sse2"}))
    assert build._library_path(COMPILER) != plain, "a library for one CPU must not be loaded on another"
    monkeypatch.undo()
    monkeypatch.setattr(build, "SOURCE_DIR", tiny_sources)
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path))
    (tiny_sources / "tiny.cpp").write_text(TINY_SOURCE + "// changed\n", encoding="utf-8")
    assert build._library_path(COMPILER) != plain


def test_no_flag_breaks_non_finite_numbers() -> None:
    """-ffast-math would, and it would flush denormals for the whole process."""
    assert not {"-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations"} & set(
        build.FLAGS
    )


def test_every_kernel_that_python_calls_is_compiled() -> None:
    package = Path(build.__file__).parents[1]
    called = set(re.findall(r"\.(wg_\w+)", (package / "ops" / "cpu.py").read_text(encoding="utf-8")))
    sources = "".join(p.read_text(encoding="utf-8") for p in build.SOURCE_DIR.glob("*.cpp"))
    defined = set(re.findall(r"^\w+ (wg_\w+)\(", sources, re.MULTILINE))
    assert called and called <= defined
    library = build.library()
    if library is not None:
        assert all(hasattr(library, name) for name in called)


@needs_compiler
def test_a_library_that_was_cut_short_is_refused_not_run_into(tiny_sources: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.so"
    assert build.compile_library(str(COMPILER), path, {tiny_sources / "tiny.cpp": ["-fPIC"]}) == ""
    data = path.read_bytes()
    for n_bytes in (0, 4, 63, 64, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n_bytes])  # loading one of 1000 bytes ends the process with SIGBUS
        with pytest.raises(OSError, match="cut short"):
            build.open_library(path)
    path.unlink()  # a new file: the loader knows the old one by its inode
    path.write_bytes(data)
    assert build.open_library(path).wg_sum_of_squares
