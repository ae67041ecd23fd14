"""The top of the package: names load on first use, without torch where they can, and are listed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import wafergpt


@pytest.mark.parametrize("name", wafergpt.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(wafergpt, name) is not None
    assert name in dir(wafergpt)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'wafergpt' has no attribute 'nothing'"):
        wafergpt.nothing  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys; from wafergpt import GPTConfig, SamplingConfig, __version__, generate, load;"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
