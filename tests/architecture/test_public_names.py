"""The public API, name by name: a change here is a change for users and belongs in CHANGELOG.md."""

from __future__ import annotations

import subprocess
import sys

import wafergpt

PUBLIC_NAMES = [
    "FAMILY",
    "GPT",
    "GPTConfig",
    "KVCache",
    "SamplingConfig",
    "Tokenizer",
    "TrainConfig",
    "WSE2",
    "__version__",
    "generate",
    "load",
    "pipeline",
    "train",
]


def test_public_names_are_the_listed_ones() -> None:
    assert sorted(wafergpt.__all__) == PUBLIC_NAMES


def test_every_public_name_resolves_and_is_documented() -> None:
    for name in wafergpt.__all__:
        thing = getattr(wafergpt, name)
        assert name in dir(wafergpt)
        if callable(thing):
            assert thing.__doc__, f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(wafergpt, "gpt5")


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, wafergpt; sys.exit(bool({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
