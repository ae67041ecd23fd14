"""The wheel works alone: no extras, no compiler, no network, an empty environment.

The environment is a new venv without pip into which only the distributions that the wheel itself
requires are linked, found by walking the requirements from the wheel's own metadata. Extras
(matplotlib, pyarrow, ...) are really absent, and a core requirement that was forgotten would be too.
"""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")

MAKE_CHECKPOINT = """
import sys
from pathlib import Path

import wafergpt
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.config import to_dict

tokenizer = wafergpt.Tokenizer.train(["the quick brown fox jumps over the lazy dog\\n"] * 3, vocab_size=280)
config = wafergpt.GPTConfig(
    d_model=16, n_layers=2, n_heads=2, vocab_size=tokenizer.vocab_size, max_seq_len=32
)
store = CheckpointStore(Path(sys.argv[1]) / "checkpoints")
store.save(
    7,
    {"model": wafergpt.GPT(config).to_arrays()},
    {"config.json": {"model": to_dict(config)}},
    {"tokenizer.json": tokenizer.to_bytes()},
)
"""

IMPORT_EVERYTHING = """
import importlib.util, pkgutil
import wafergpt
from wafergpt.errors import MissingDependencyError

for name in wafergpt.__all__:
    getattr(wafergpt, name)
lacking = set()
for module in pkgutil.walk_packages(wafergpt.__path__, "wafergpt."):
    try:
        importlib.import_module(module.name)
    except MissingDependencyError as error:  # the figures are matplotlib's, and say how to get it
        assert "pip install 'wafergpt[plots]'" in str(error), error
        lacking.add(module.name.rpartition(".")[0])
assert lacking <= {"wafergpt.wafer.plots"}, lacking
for extra in ("matplotlib", "pyarrow", "zstandard", "tensorboard", "pytest", "transformers"):
    assert importlib.util.find_spec(extra) is None, extra
print(wafergpt.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources with what is installed."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            shutil.copy2(source, copy / name)
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)])
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv that holds the wheel, what it requires, and nothing else."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    (packages,) = (venv / "lib").glob("python*/site-packages")
    for distribution in core_distributions(wheel):
        for name in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            source, link = Path(str(distribution.locate_file(name))), packages / name
            if source.exists() and not link.exists():
                link.symlink_to(source)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    _run([*pip, "install", "--no-index", "--no-deps", str(wheel)])
    _run([*pip, "check"])
    return venv / "bin"


def core_distributions(wheel: Path) -> list[importlib.metadata.Distribution]:
    """The installed distributions that the wheel requires without extras, with what those require."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    found: dict[str, importlib.metadata.Distribution] = {}
    open_ends = [(Requirement(text), "") for text in metadata.get_all("Requires-Dist") or []]
    while open_ends:
        requirement, extra = open_ends.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            open_ends += [(Requirement(text), "") for text in found[name].requires or []]
        for wanted in requirement.extras:
            open_ends += [(Requirement(text), wanted) for text in found[name].requires or []]
    return list(found.values())


def _run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    # PYTHONPATH would let the source tree stand in for the wheel.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} if env is None else env
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _variables(environment: Path, folder: Path) -> dict[str, str]:
    # PATH holds the venv alone: no compiler can be found, and none may be needed.
    return {"PATH": str(environment), "HOME": str(folder), "OMP_NUM_THREADS": "1"}


def test_the_wheel_is_pure_and_complete(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("wafergpt/")}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    source = ROOT / "src"
    tracked = subprocess.run(
        [
            "git",
            "-C",
            str(source),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "wafergpt",
        ],
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    expected = {name for name in tracked if name and (source / name).is_file()}
    assert packed == (expected or packed) and len(licences) == 1
    assert any(name.endswith(".cpp") for name in packed) and "wafergpt/py.typed" in packed


def test_every_name_imports_without_extras(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "python"), "-c", IMPORT_EVERYTHING]
    where = _run(command, cwd=tmp_path, env=_variables(environment, tmp_path))
    assert str(environment.parent) in where, "the installed wheel, not the source tree, was imported"


def test_it_generates_without_a_compiler(environment: Path, tmp_path: Path) -> None:
    variables, python = _variables(environment, tmp_path), str(environment / "python")
    _run([python, "-c", MAKE_CHECKPOINT, "run"], cwd=tmp_path, env=variables)
    verb = [
        str(environment / "wafergpt"),
        "generate",
        "--model",
        "run",
        "--max-new-tokens",
        "8",
        "--seed",
        "1",
    ]
    first, second = (_run([*verb, "the quick"], cwd=tmp_path, env=variables) for _ in range(2))
    assert first.startswith("the quick") and len(first) > len("the quick\n") and first == second
    findings = json.loads(
        _run([str(environment / "wafergpt"), "doctor", "--json"], cwd=tmp_path, env=variables)
    )
    report = {finding["name"]: finding for finding in findings}
    assert not report["compiler"]["present"] and not report["kernels"]["present"]
    assert report["plots: matplotlib"]["fix"] == "pip install 'wafergpt[plots]'"


def test_a_forgotten_requirement_would_be_missed(environment: Path, tmp_path: Path) -> None:
    """The environment is as empty as it claims: what only the tests need cannot be imported."""
    command = [str(environment / "python"), "-c", "import hypothesis"]
    done = subprocess.run(command, capture_output=True, text=True, env=_variables(environment, tmp_path))
    assert done.returncode != 0 and "No module named 'hypothesis'" in done.stderr
    assert not (set(os.listdir(environment)) & {"g++", "c++", "gcc", "cc"})
