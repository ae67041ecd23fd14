"""Dependencies, their pins and reasons; the gate calls what it should; exit codes are documented."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source_tree import PACKAGE, ROOT, imports

from wafergpt import errors
from wafergpt.cli import failure

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])
CUDA_LIBRARIES = ("nvidia-", "cuda-", "triton")  # a CUDA build of torch pins its own


def lines_without_reason(pyproject: str) -> list[str]:
    """Lines of dependency lists that do not say what needs them."""
    tables = re.findall(r"^(?:\w+|requires) = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    lines = [
        line for table in tables for line in table.splitlines() if re.match(r'\s*"[\w.-]+\s*[><=~]', line)
    ]
    return [line.strip() for line in lines if not re.search(r'",\s+#\s*\S+', line)]


def pins(constraints: str) -> dict[str, str]:
    """Package -> exact version; raises ValueError for a line of any other form."""
    found = {}
    for line in constraints.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][\w.!-]*)", line)
        if match is None:
            raise ValueError(f"not `name==version`: {line!r}")
        name = canonicalize_name(match.group(1))
        if name in found:
            raise ValueError(f"{name} is pinned twice")
        found[name] = match.group(2)
    return found


def needed(root: str, extras: tuple[str, ...]) -> set[str]:
    """Every package that the distribution `root` with `extras` pulls in on this machine."""
    seen: set[tuple[str, str]] = set()
    open_ends = [(root, extra) for extra in ("", *extras)]
    while open_ends:
        name, extra = open_ends.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                open_ends += [(requirement.name, e) for e in ("", *requirement.extras)]
    return {name for name, _ in seen} - {canonicalize_name(root)}


def test_every_dependency_says_what_needs_it() -> None:
    assert lines_without_reason(PYPROJECT) == []
    planted = PYPROJECT.replace('    "rich>', '    "left-pad>=1",\n    "rich>')
    assert lines_without_reason(planted) == ['"left-pad>=1",']


def test_what_is_declared_is_what_is_imported() -> None:
    """Nothing undeclared, nothing overdeclared; `test` holds what only tests, lint and benchmarks use."""
    homes = importlib.metadata.packages_distributions()
    foreign = {item.target for item in imports(PACKAGE) if item.ours is None}
    tops = {"tensorboard" if "tensorboard" in name else name.partition(".")[0] for name in foreign}
    imported = {canonicalize_name(homes[top][0]) for top in tops - set(sys.stdlib_module_names)}
    runtime = [extra for extra in EXTRAS if extra != "test"]
    texts = [*PROJECT["dependencies"], *(t for e in runtime for t in PROJECT["optional-dependencies"][e])]
    assert imported == {canonicalize_name(Requirement(text).name) for text in texts}


def test_constraints_pin_exactly_what_the_extras_need() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    required = {name for name in needed("wafergpt", EXTRAS) if not name.startswith(CUDA_LIBRARIES)}
    assert set(pinned) == required
    assert pinned["torch"] == "2.13.0"


@pytest.mark.parametrize("line", ["rich>=13", "rich", "-e .", "rich==13 # x", "rich==1\nRich==2"])
def test_a_loose_pin_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        pins(f"# header\ntorch==2.13.0\n{line}\n")


def test_installed_versions_are_the_pinned_ones() -> None:
    for name, version in pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).items():
        assert importlib.metadata.version(name).partition("+")[0] == version, name


def test_the_gate_runs_make_test_and_make_test_runs_lint() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    assert re.search(r"^(exec )?make test$", gate.read_text(encoding="utf-8"), re.MULTILINE)
    plan = _make_plan("test")
    assert "ruff check" in plan and "ruff format --check" in plan and "mypy" in plan
    assert "-m 'not long'" in plan and "WAFERGPT_SMOKE=1" in plan
    assert "pytest -n 2 -m ''" in _make_plan("test-long")  # no filter: every test
    assert "wafergpt quickstart" in _make_plan("demo")


def _make_plan(target: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs/reference/exit_codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.WaferGPTError)
    ]
    raised = {c.exit_code for c in classes} | {failure.OUT_OF_MEMORY, failure.INTERNAL, failure.INTERRUPTED}
    assert documented == raised | {0, failure.READER_GONE, failure.TERMINATED}
    assert len({c.exit_code for c in classes}) == len(classes), "two errors share an exit code"


def test_the_licence_is_apache_2() -> None:
    text = Path(ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0" and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
