"""The scripts in examples/ run as a reader runs them, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.errors import AssetError
from wafergpt.tokenizer.bpe import Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TESTED = {"article_5_1.py"}


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With an empty hub cache and the hub switched off."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED


@pytest.mark.assets
@pytest.mark.parametrize("inside", ["wafergpt", "transformers"])
def test_the_articles_first_listing(inside: str, tmp_path: Path) -> None:
    try:
        Tokenizer.gpt2()
    except AssetError as error:
        pytest.skip(str(error))
    if inside == "transformers":
        pytest.importorskip("transformers")
    done = run("article_5_1.py", tmp_path, "--inside", inside)
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 6, 768])\n"), done.stderr
    assert "random weights, because: " in done.stderr


def test_an_unknown_inside_is_refused(tmp_path: Path) -> None:
    """The check above can fail: any other output or exit code is a failure."""
    assert run("article_5_1.py", tmp_path, "--inside", "tensorflow").returncode == 2
