"""`wafergpt eval` and `api.evaluate` on a stored model: from the command line to the figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from wafergpt import api
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.cli.main import main
from wafergpt.config import to_dict
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=257, max_seq_len=48, init_std=0.3)
TEXTS = ["The wafer is as wide as a dinner plate.", "It holds 850,000 cores – each with its own memory."]


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


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    paths = [folder / f"{i}.txt" for i in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["eval", *arguments])
    return int(exit_.value.code or 0)


def test_loss_is_the_models_own(run: Path, texts: list[Path]) -> None:
    """Windows that overlap by all but one token: each token's loss by a forward pass of its own."""
    model, tokenizer = GPT.load(run), api.load(run).tokenizer
    eot = tokenizer.end_of_text_id
    stream = [eot]
    for text in TEXTS:
        stream += [*tokenizer.encode(text), eot]
    nats = 0.0
    for end in range(1, len(stream)):
        context = torch.tensor([stream[max(0, end - 48) : end]])
        with torch.no_grad():
            logits = model(context, n_logits=1).logits[0, -1]
        nats -= float(logits.log_softmax(-1)[stream[end]])
    row = api.evaluate(run, texts, stride=1).rows[0]
    # float32 logits of size ~10 in two batch shapes: 2^-24 * 10 per operation, ~50 in sequence.
    assert row.nats_per_token == pytest.approx(nats / (len(stream) - 1), abs=3e-5)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert row.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, abs=6e-5)


def test_command_prints_the_figures(run: Path, texts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(run), *(word for path in texts for word in ("--data", str(path)))]
    report = api.evaluate(run, texts, stride=48)
    assert cli(*words, "--stride", "48") == 0
    out = capsys.readouterr().out
    row = report.rows[0]
    assert f"nats/token  {row.nats_per_token:.4f}\n" in out
    assert f"perplexity  {row.perplexity:.2f}\n" in out
    assert f"bits/byte   {row.bits_per_byte:.4f}\n" in out
    assert "windows of 48 tokens every 48" in out

    assert cli(*words, "--stride", "48", "--baselines", "--json") == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["rows"]
    assert [r["kind"] for r in rows] == ["model", "compressor"]
    assert rows[0]["bits_per_byte"] == pytest.approx(row.bits_per_byte)
    assert "n-gram baselines need a prepared folder" in captured.err


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--data", "missing.txt"], 3, "missing.txt"),
        (["--data", "0.txt", "--stride", "99"], 2, "stride = 99"),
        (["--data", "0.txt", "--seq-len", "49"], 2, "seq_len = 49"),
    ],
)
def test_one_line_errors(
    run: Path,
    texts: list[Path],
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(texts[0].parent)
    assert cli("--model", str(run), *options) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
