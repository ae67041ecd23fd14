"""The size budget: raised only in a commit of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_tree import ROOT, FunctionNode, functions, parse

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8  # without self, cls, an autograd Function's ctx; a verb's options do not count
FOLDERS = ("src", "tests", "benchmarks", "examples")
SUFFIXES = (".py", ".cpp", ".h")


def sources(root: Path) -> list[Path]:
    """Every Python and C++ file that is ours."""
    return [p for folder in FOLDERS for p in sorted((root / folder).rglob("*")) if p.suffix in SUFFIXES]


def long_files(root: Path) -> list[str]:
    """Files over the budget, with their length."""
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root)}
    return [f"{p.relative_to(root)}: {n} lines" for p, n in counts.items() if n > MAX_FILE_LINES]


def long_functions(root: Path) -> list[str]:
    """Functions over the budget (docstring included, decorators not), with their length."""
    found = []
    for path in sources(root):
        for function in functions(path) if path.suffix == ".py" else ():
            n_lines = (function.end_lineno or 0) - function.lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                found.append(f"{path.relative_to(root)}: {function.name} has {n_lines} lines")
    return found


def crowded_signatures(root: Path) -> list[str]:
    """Functions with more parameters than the budget, verbs of the command line aside."""
    found = []
    for path in sources(root):
        if path.suffix != ".py":
            continue
        verbs = _top_level_functions(path) if path.parent == root / "src/wafergpt/cli" else []
        for function in functions(path):
            n_parameters = _n_parameters(function)
            if n_parameters > MAX_PARAMETERS and function not in verbs:
                found.append(f"{path.relative_to(root)}: {function.name} has {n_parameters} parameters")
    return found


def _top_level_functions(path: Path) -> list[FunctionNode]:
    return [node for node in parse(path).body if isinstance(node, FunctionNode)]


def _n_parameters(function: FunctionNode) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return len([a for a in named if a.arg not in ("self", "cls", "ctx")]) + len(starred)


CHECKS = (long_files, long_functions, crowded_signatures)
PLANTED = {
    long_files: ("src/wafergpt/kernels/cpu/big.cpp", "int a;\n" * (MAX_FILE_LINES + 1)),
    long_functions: (
        "src/wafergpt/big.py",
        "class A:\n    def f(self):\n" + "        pass\n" * MAX_FUNCTION_LINES,
    ),
    crowded_signatures: ("src/wafergpt/big.py", "def f(a, b, c, d, e, g, *, h, i, j):\n    pass\n"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_tree_is_within_budget(check) -> None:
    found = check(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_check_can_fail(check, tmp_path: Path) -> None:
    name, text = PLANTED[check]
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(check(tmp_path)) == 1
