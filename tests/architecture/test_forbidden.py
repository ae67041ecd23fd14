"""What must not stand in this repository: ways to run code from data, and traces of anyone's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from source_tree import PACKAGE, ROOT, modules, parse

# SECURITY.md promises: no file that wafergpt reads can run code.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),  # reads pickles
    ("yaml", "load"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("os", "system"),
    ("os", "popen"),
    ("*", "extractall"),  # unpacks paths and links that the archive chose
    ("*", "trust_remote_code"),
}
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}  # with any value but a literal False
DYNAMIC_IMPORT_HOMES = ("", "cli.main")  # import_module would hide an import from the tests beside this one

# Written so that this file does not hold them.
_SLASH = "/"
FORBIDDEN_TEXT = {
    "a host path": re.compile(rf"(?<![\w.\-]){_SLASH}(work|root|opt)(?={_SLASH})"),
    "a folder beside the repository": re.compile(r"\.\./" + "shared"),
    "an index option of pip": re.compile("--(extra-)?index-" + "url|--find-" + "links"),
    "a registry's host": re.compile(
        "(pypi|pythonhosted|npmjs|debian)" + r"\.(org|net|com)|download\.py" + "torch"
    ),
}
BINARY = {".png", ".bin", ".gz", ".zst", ".parquet", ".safetensors"}


def unsafe_code(package: Path) -> list[str]:
    """Calls and imports through which data could become code."""
    found = []
    for name, path in modules(package).items():
        for node in ast.walk(parse(path)):
            problem = _problem(node, name)
            if problem:
                found.append(f"{path.name}:{getattr(node, 'lineno', 0)}: {problem}")
    return found


def _problem(node: ast.AST, module: str) -> str:
    if isinstance(node, ast.Import):
        names = {alias.name.partition(".")[0] for alias in node.names}
        return ", ".join(sorted(names & FORBIDDEN_IMPORTS))
    if isinstance(node, ast.ImportFrom):
        return (node.module or "") if (node.module or "").partition(".")[0] in FORBIDDEN_IMPORTS else ""
    if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES and isinstance(node.ctx, ast.Load):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else "*"
        if {(owner, node.attr), ("*", node.attr)} & FORBIDDEN_ATTRIBUTES:
            return f"{owner}.{node.attr}"
        if node.attr == "import_module" and module not in DYNAMIC_IMPORT_HOMES:
            return "import_module"
    if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_KEYWORDS:
        off = isinstance(node.value, ast.Constant) and node.value.value is False
        return "" if off else f"{node.arg}="
    return ""


def repository_files(root: Path) -> list[Path]:
    """Every text file that git tracks or would track."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [p for name in names if name and (p := root / name).is_file() and p.suffix not in BINARY]


def foreign_traces(root: Path) -> list[str]:
    """Lines that name a machine, a folder outside the repository or a registry."""
    found = []
    for path in repository_files(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for what, pattern in FORBIDDEN_TEXT.items():
                if pattern.search(line):
                    found.append(f"{path.relative_to(root)}:{number}: {what}")
    return found


def test_no_data_can_become_code() -> None:
    found = unsafe_code(PACKAGE)
    assert not found, "\n".join(found)


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="not a git checkout: the tracked files are not known"
)
def test_the_repository_names_no_machine() -> None:
    found = foreign_traces(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('x')",
        "eval('1')",
        "run = exec",
        "import yaml; yaml.load('x')",
        "archive.extractall('.')",
        "run('ls', shell=True)",
        "load(trust_remote_code=True)",
        "np.load('x', allow_pickle=True)",
        "importlib.import_module('x')",
    ],
)
def test_unsafe_code_is_found(line: str, tmp_path: Path) -> None:
    package = tmp_path / "wafergpt"
    package.mkdir()
    (package / "planted.py").write_text(f"model.eval()\n'no pickle here'\n{line}\n", encoding="utf-8")
    assert len(unsafe_code(package)) == 1


@pytest.mark.parametrize(
    "text", ["see /wo" + "rk/x", "/ro" + "ot/.cache", "../sh" + "ared/a", "p" + "ypi.org"]
)
def test_foreign_traces_are_found(text: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "note.md").write_text(f"network/root/model is fine\n{text}\n", encoding="utf-8")
    assert len(foreign_traces(tmp_path)) == 1
