"""Read the package's source without importing it: modules, imports, functions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wafergpt"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module: `ours` is its dotted name below the package, or None for someone else's."""

    importer: str
    target: str
    ours: str | None
    line: int
    deferred: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.importer or '__init__'}:{self.line} imports {self.target}"


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules(package: Path) -> dict[str, Path]:
    """Dotted name below the package ("" for itself) -> file, for every module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> Iterator[Import]:
    """Every import statement of every module, those inside functions and TYPE_CHECKING blocks included."""
    known = modules(package)
    for importer, path in known.items():
        inside = {
            id(child)
            for node in ast.walk(parse(path))
            if isinstance(node, FunctionNode)
            for child in ast.walk(node)
        }
        for node in ast.walk(parse(path)):
            for target in _targets(node, importer, path, package.name, known):
                ours = _below(target, package.name)
                yield Import(
                    importer=importer, target=target, ours=ours, line=node.lineno, deferred=id(node) in inside
                )


def _below(target: str, package: str) -> str | None:
    if target == package:
        return ""
    return target.removeprefix(package + ".") if target.startswith(package + ".") else None


def _targets(node: ast.AST, importer: str, path: Path, package: str, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:  # relative: resolve against the importer's own package
            parts = [package, *filter(None, importer.split("."))]
            keep = len(parts) - node.level + (path.name == "__init__.py")
            base = ".".join([*parts[:keep], *filter(None, [node.module or ""])])
        below = _below(base, package)
        for alias in node.names:
            submodule = f"{below}.{alias.name}".lstrip(".") if below is not None else None
            yield f"{package}.{submodule}" if submodule in known else base


def functions(path: Path) -> Iterator[FunctionNode]:
    """Every function and method of a file."""
    yield from (node for node in ast.walk(parse(path)) if isinstance(node, FunctionNode))
