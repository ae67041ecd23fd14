"""The scripts in examples/ run as a reader runs them, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.assets.fetch import fetch
from wafergpt.errors import AssetError
from wafergpt.tokenizer.bpe import Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TESTED = {"article_5_1.py", "article_5_2.py", "wafer_train_step.py"}
THE_ARTICLES_SECOND_LISTING = """import torch
import torch.nn as nn
from transformers import GPT2Model, GPT2Tokenizer
from cerebras import WSE2

class GPT(nn.Module):
    def __init__(self):
        super(GPT, self).__init__()
        self.tokenizer = GPT2Tokenizer.from_pretrained('gpt2')
        self.model = GPT2Model.from_pretrained('gpt2')
        self.wse2 = WSE2()

    def forward(self, input_ids, attention_mask):
        self.wse2.start()
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        self.wse2.stop()
        return outputs.last_hidden_state

model = GPT()
input_text = "Hello, how are you?"
input_ids = torch.tensor([model.tokenizer.encode(input_text)])
attention_mask = torch.ones_like(input_ids)
outputs = model(input_ids, attention_mask)
print(outputs.shape)
"""


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


def test_the_articles_second_listing_is_unchanged_but_for_its_import() -> None:
    ours = (EXAMPLES / "article_5_2.py").read_text(encoding="utf-8").splitlines()
    listing = THE_ARTICLES_SECOND_LISTING.splitlines()
    differing = [(a, b) for a, b in zip(listing, ours, strict=True) if a != b]
    assert differing == [("from cerebras import WSE2", "from wafergpt import WSE2")]


@pytest.mark.assets
def test_the_articles_second_listing(tmp_path: Path) -> None:
    """In a folder with `gpt2/` (OpenAI's tokenizer files, random weights), which Transformers finds first."""
    transformers = pytest.importorskip("transformers")
    try:
        files = fetch("gpt2-tokenizer")
    except AssetError as error:
        pytest.skip(str(error))
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(n_layer=2)  # of the width that the article prints
    transformers.GPT2Model(config).save_pretrained(folder)
    shutil.copy(files / "encoder.json", folder / "vocab.json")
    shutil.copy(files / "vocab.bpe", folder / "merges.txt")
    done = run("article_5_2.py", tmp_path)
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 6, 768])\n"), done.stderr


@pytest.mark.parametrize("arguments", [(), ("--numerics", "cb16", "--arch", "WSE-3")], ids=["exact", "cb16"])
def test_a_training_step_under_the_wafer(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run("wafer_train_step.py", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("loss 8.") and lines[1].startswith("modelled run on 1 x ")
    assert "forward, backward, optimizer" in lines[1]
    assert any(line.startswith("host, measured: ") for line in lines)
    assert not any("on the host, no mapping" in line for line in lines)
