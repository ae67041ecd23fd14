"""`wafergpt train`: what it prints, its exit codes, and how it goes on after a signal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import write_data

import wafergpt
from wafergpt.cli.main import main
from wafergpt.config import dump, load
from wafergpt.errors import ConfigError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.training import metrics
from wafergpt.training.config import TrainConfig

TEXT = "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. "
SMALL = [
    "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.d_ffn=64", "model.max_seq_len=32",
    "data.seq_len=16", "batch_size=4", "micro_batch_size=4", "schedule.total_steps=12",
    "schedule.warmup_steps=2", "eval_every=4", "save_every=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with a real tokenizer of 300 entries."""
    folder = write_data(tmp_path_factory.mktemp("verb") / "data")
    tokenizer = Tokenizer.train([TEXT * 20], 300)
    tokenizer.save(folder / "tokenizer.json")
    for part in ("train", "held_out"):
        path = folder / part / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": tokenizer.vocab_size}))
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    sets = [word for change in SMALL for word in ("--set", change)]
    return ["train", "1M-muP", "--data", str(data), "--out", str(out), *sets, *more]


def exit_code(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_it_trains_and_says_how_to_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert exit_code(arguments(data, out, "--set", "sample_every=6", "--prompt", "The quick")) == 0
    shown = capsys.readouterr().out
    assert "peak_lr: 0.006" in shown and "parametrization: mup" in shown  # the resolved config
    assert "step 12/12" in shown and "[step 6] The quick" in shown
    assert "held out: " in shown and f'next: wafergpt generate --model {out} "..."' in shown
    assert (out / "loss.png").exists()
    assert load(TrainConfig, out / "config.yaml").model.vocab_size == 300

    assert exit_code(["train", "--out", str(out), "--resume", "--set", "keep=2"]) == 0
    assert "resuming at step 12" in capsys.readouterr().out


def test_a_config_file_is_the_same_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments(data, tmp_path / "a", "--dry-run")) == 0
    text = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)
    assert (
        exit_code(
            ["train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "b"), "--dry-run"]
        )
        == 0
    )
    assert capsys.readouterr().out == text == dump(load(TrainConfig, tmp_path / "run.yaml"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--set", "optim.peek_lr=1"], 2, "unknown config key 'optim.peek_lr'; did you mean 'peak_lr'?"),
        (["--set", "model.n_heads=5"], 2, "d_model = 32 is not divisible by n_heads = 5"),
        (["--set", "batch_size=0"], 2, "batch_size = 0 must be at least 1"),
        (["--config", "absent.yaml"], 2, "give either the name of a run or a config file"),
        (["--data", "absent"], 3, "'absent/train' holds no prepared data"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], code: int, message: str
) -> None:
    assert exit_code(arguments(data, tmp_path / "run", *change)) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "gpt2", "--data", "{data}"], "was not published"),
        (["train", "13B", "--data", "{data}"], "was trained in 2 phases of different batch sizes"),
        (["train", "111Mb", "--data", "{data}"], "unknown model '111Mb'"),
        (["train", "111M"], "'111M' needs data"),
        (["train"], "give either the name of a run or a config file"),
    ],
)
def test_a_run_that_does_not_exist_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    words = [word.format(data=data) for word in words]
    assert exit_code([*words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_changed_shard_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "shard-00000.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    assert exit_code(arguments(tmp_path / "data", tmp_path / "run")) == 3
    assert "has changed: its SHA-256 is not the manifest's" in capsys.readouterr().err


def test_python_trains_by_name_or_config(data: Path, tmp_path: Path) -> None:
    result = wafergpt.train("1M-muP", tmp_path / "a", data=data, overrides=SMALL, show=False)
    assert result.total_tokens == 12 * 64
    again = wafergpt.train(load(TrainConfig, tmp_path / "a" / "config.yaml"), tmp_path / "b", show=False)
    assert again.held_out == result.held_out
    with pytest.raises(ConfigError, match="go with the name of a run"):
        wafergpt.train(load(TrainConfig, tmp_path / "a" / "config.yaml"), tmp_path / "c", data=data)


def test_what_was_trained_generates(data: Path, tmp_path: Path) -> None:
    wafergpt.train("1M-muP", tmp_path / "run", data=data, overrides=SMALL, show=False)
    text = str(wafergpt.generate(tmp_path / "run", "The", max_new_tokens=5, seed=1))
    assert isinstance(text, str)


def stop_after_20_lines(command: list[str], out: Path, number: int) -> tuple[int, str]:
    """Start `command`, signal its process once 20 metrics lines are there; (exit code, standard error)."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(metrics.read(out / "metrics.jsonl")) < 20:
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


ENDLESS = ["--set", "schedule.total_steps=1000000", "--set", "save_every=1000000"]
VERB = [sys.executable, "-c", "from wafergpt.cli.main import main; main()"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_sets_the_exit_code(data: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    found, errors = stop_after_20_lines([*VERB, *arguments(data, out, *ENDLESS)], out, number)
    assert found == code
    last = metrics.read(out / "metrics.jsonl")[-1]["step"]
    name = signal.Signals(number).name
    assert f"error: {name}: stopped after step {last}, saved in {out}; go on with --resume" in errors
    assert (out / "checkpoints" / f"step-{last:08d}").is_dir()


@pytest.mark.long
def test_torchrun_stops_and_saves_too(data: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun reaches every process; they agree on the last step and the first one saves it."""
    out = tmp_path / "run"
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
    ]  # fmt: skip
    more = [*ENDLESS, "--set", "micro_batch_size=2"]
    stop_after_20_lines([*torchrun, *VERB, *arguments(data, out, *more)], out, signal.SIGTERM)
    last = metrics.read(out / "metrics.jsonl")[-1]["step"]
    assert last >= 16 and (out / "checkpoints" / f"step-{last:08d}").is_dir()
