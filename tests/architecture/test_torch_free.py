"""What is marked torch-free imports on a machine without torch; `wafergpt --help` loads nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from import_rules import RULES, component_of
from source_tree import PACKAGE, modules

PROGRAM = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked", name=name)

sys.meta_path.insert(0, Blocker())
failures = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""

MARKED = [
    ".".join(filter(None, [PACKAGE.name, name]))
    for name in modules(PACKAGE)
    if (component := component_of(name)) is not None and (component == "" or RULES[component].torch_free)
]


def failures_without_torch(names: list[str], search_path: Path = PACKAGE.parent) -> dict[str, str]:
    """Module -> why it does not import with torch blocked, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(search_path)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def test_marked_modules_import_with_torch_blocked() -> None:
    assert {"wafergpt.checkpoints.native", "wafergpt.cli.main", "wafergpt.model.config"} <= set(MARKED)
    assert failures_without_torch(MARKED) == {}


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("def f():\n    pass\n\nimport torch.nn\n", encoding="utf-8")
    assert list(failures_without_torch(["json", "planted"], tmp_path)) == ["planted"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"]], ids=" ".join)
def test_the_front_door_loads_nothing_heavy(arguments: list[str]) -> None:
    """The 0.5 s of `--help` without a clock: Python's start takes most of it if none of these load."""
    code = (
        "import sys\nfrom wafergpt.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'yaml', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
