"""`wafergpt generate` and its Python twin on a stored model: from the command line to the text."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import wafergpt
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.cli.main import main
from wafergpt.config import to_dict
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=257, max_seq_len=48, init_std=0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained model over bytes."""
    folder = tmp_path_factory.mktemp("run")
    CheckpointStore(folder / "checkpoints").save(
        5,
        {"model": GPT(CONFIG).to_arrays()},
        {"config.json": {"model": to_dict(CONFIG)}},
        {"tokenizer.json": Tokenizer.train(["abc"], 257).to_bytes()},
    )
    return folder


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", *arguments])
    return int(exit_.value.code or 0)


def test_python(run: Path) -> None:
    model = wafergpt.load(run)
    assert (model.config, model.step, model.skipped) == (CONFIG, 5, ())
    greedy = wafergpt.generate(model, "In the", temperature=0, max_new_tokens=12)
    assert wafergpt.generate(str(run), "In the", temperature=0, max_new_tokens=12) == greedy
    assert len(greedy.token_ids) == 12
    drawn = model.generate("In the", seed=3, max_new_tokens=12)
    assert model.generate("In the", seed=3, max_new_tokens=12) == drawn != greedy
    assert "".join(p.text for p in model.stream("In the", seed=3, max_new_tokens=12)) == drawn.text


def test_greedy_is_the_argmax_of_the_full_forward(run: Path) -> None:
    """The whole path, cache and all, against the model run on ever longer inputs."""
    import torch

    model, loaded = GPT.load(run), wafergpt.load(run)
    ids = loaded.tokenizer.encode("In the")
    for token_id in loaded.generate("In the", temperature=0, max_new_tokens=20).token_ids:
        assert token_id == int(model(torch.tensor([ids]), n_logits=1).logits.argmax())
        ids.append(token_id)


def test_python_refuses_unknown_options(run: Path) -> None:
    with pytest.raises(ConfigError, match="unknown config key 'temprature'; did you mean 'temperature'"):
        wafergpt.generate(run, "x", temprature=1)
    with pytest.raises(CheckpointError, match="does not exist"):
        wafergpt.generate(run / "nowhere", "x")


def test_command_streams_prompt_and_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = wafergpt.generate(run, "In the", temperature=0, max_new_tokens=10).text
    assert cli("--model", str(run), "--greedy", "--max-new-tokens", "10", "In the") == 0
    assert capsys.readouterr().out == f"In the{expected}\n"
    assert (
        cli("--model", str(run), "--temperature", "0", "--max-new-tokens", "10", "--no-echo", "In the") == 0
    )
    assert capsys.readouterr().out == f"{expected}\n"


def test_command_options_reach_the_sampler(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "seed": 4, "max_new_tokens": 20}
    text = wafergpt.generate(run, "ab", **options).text
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab"))
    assert cli("--model", str(run), *words, "--no-echo", "-") == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert cli("--model", str(run), *words, "--no-echo", "--stop", text[5:7], "--stop", "zzz", "ab") == 0
    assert capsys.readouterr().out == f"{text[: text.index(text[5:7])]}\n"


def test_command_says_when_the_window_is_full(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model", str(run), "--greedy", "x" * 40) == 0
    assert "note: stopped because the context window of 48 tokens is full" in capsys.readouterr().err


def test_command_names_a_skipped_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run, tmp_path / "copy"))
    path = CheckpointStore(run / "checkpoints").save(
        6, {"model": {"a": np.zeros(1, np.float32)}}, {"config.json": {}}
    )
    (path / "model.safetensors").write_bytes(b"damaged")
    assert cli("--model", str(run), "--greedy", "--max-new-tokens", "2", "x") == 0
    assert "note: skipped checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "{run}", "x" * 48], 2, "the prompt has 48 tokens, which leaves no room"),
        (["--model", "{run}/nowhere", "x"], 5, "does not exist"),
        (["--model", "{run}", "--greedy", "--temperature", "0.5", "x"], 2, "exclude each other"),
        (["--model", "{run}", "--top-p", "2", "x"], 2, "top_p = 2.0 is out of range"),
        (["--model", "{run}", "--stop", "", "x"], 2, "a stop text must not be empty"),
        (["x"], 2, "--model"),
    ],
)
def test_command_errors_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert cli(*(word.format(run=run) for word in words)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err
