"""Imports point downwards, make no cycle, and torch stays where it belongs (table: import_rules.py)."""

from __future__ import annotations

import ast
import graphlib
import sys
from pathlib import Path

import pytest
from import_rules import EVERYWHERE, MAY_DEFER, RULES, component_of, is_within
from source_tree import PACKAGE, imports, modules, parse


def unknown_components(package: Path) -> list[str]:
    """Modules that the table does not know."""
    return [name for name in modules(package) if component_of(name) is None and not _is_init(package, name)]


def upward_imports(package: Path) -> list[str]:
    """Imports of this package that the table does not allow."""
    found = []
    for item in imports(package):
        home = component_of(item.importer)
        if item.ours is None or home is None:
            continue
        allowed = RULES[home].may_import
        fine = (
            (home != "" and is_within(item.ours, home))
            or item.ours in EVERYWHERE
            or any(is_within(item.ours, component) for component in allowed)
        )
        if item.ours == "" and home not in ("", "api", "quickstart"):
            fine = home == "cli" or home.startswith("cli.")
        if not fine or _layer(item.ours) > RULES[home].layer:
            found.append(str(item))
    return found


def deferred_imports(package: Path) -> list[str]:
    """Imports of this package inside functions, where that is not allowed."""
    return [
        str(item)
        for item in imports(package)
        if item.ours is not None
        and item.deferred
        and not any(item.importer == name or (name and is_within(item.importer, name)) for name in MAY_DEFER)
    ]


def foreign_imports(package: Path) -> list[str]:
    """Imports of others' packages that the table does not list for the importing component."""
    found = []
    for item in imports(package):
        home, top = component_of(item.importer), item.target.partition(".")[0]
        if item.ours is not None or home is None or top in sys.stdlib_module_names:
            continue
        if top not in RULES[home].third_party:
            found.append(str(item))
    return found


def cycles(package: Path) -> list[str]:
    """A cycle of modules, if there is one (`__init__` files aside)."""
    known = {name for name in modules(package) if not _is_init(package, name)}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for item in imports(package):
        if item.importer in known and item.ours in known and item.ours != item.importer:
            graph[item.importer].add(item.ours)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def busy_init_files(package: Path) -> list[str]:
    """`__init__` files below the top that hold more than a docstring."""
    found = []
    for name, path in modules(package).items():
        if name and path.name == "__init__.py":
            body = parse(path).body
            if not (len(body) == 1 and isinstance(body[0], ast.Expr) and ast.get_docstring(parse(path))):
                found.append(name)
    return found


def _is_init(package: Path, name: str) -> bool:
    return modules(package)[name].name == "__init__.py"


def _layer(module: str) -> int:
    component = component_of(module)
    return 0 if component in (None, "") else RULES[component].layer


CHECKS = (unknown_components, upward_imports, deferred_imports, foreign_imports, cycles, busy_init_files)

# What each check must catch: file -> text, planted into an otherwise clean package.
PLANTED = {
    unknown_components: {"helpers.py": ""},
    upward_imports: {
        "model/gpt.py": "",
        "ops/reference.py": "def f():\n    from wafergpt.model import gpt\n",
    },
    deferred_imports: {"errors.py": "", "units.py": "def f():\n    import wafergpt.errors\n"},
    foreign_imports: {"recipes/law.py": "def f():\n    import torch.nn\n"},
    cycles: {
        "data/a.py": "from wafergpt.data import b\n",
        "data/b.py": "def f():\n    from .a import x\n",
    },
    busy_init_files: {
        "data/__init__.py": '"""Data."""\n\nfrom wafergpt.data.a import x\n',
        "data/a.py": "x = 1\n",
    },
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_obeys(check) -> None:
    found = check(PACKAGE)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_check_can_fail(check, tmp_path: Path) -> None:
    package = tmp_path / "wafergpt"
    for name, text in {"__init__.py": '"""Top."""\n', **PLANTED[check]}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    assert len(check(package)) == 1


def test_a_component_of_the_table_never_points_upwards() -> None:
    for name, rule in RULES.items():
        for target in rule.may_import:
            if target:
                assert RULES[component_of(target)].layer <= rule.layer, f"{name} -> {target}"
