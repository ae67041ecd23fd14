"""The standard caller: what it shows and writes, what it refuses, and how it goes on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_training import tiny_config, write_data

from wafergpt.checkpoints.lock import RunLock
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.config import load, to_dict
from wafergpt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    NonFiniteError,
    RunLockedError,
    StorageError,
)
from wafergpt.model.gpt import GPT
from wafergpt.training import environment, metrics
from wafergpt.training.config import ScheduleConfig, TrainConfig
from wafergpt.training.display import Display, peak_share
from wafergpt.training.distributed import World, pick_device
from wafergpt.training.fit import FitOptions, fit
from wafergpt.training.held_out import HeldOutLoss
from wafergpt.training.report import StepReport
from wafergpt.training.signals import Interrupted, StopSignals
from wafergpt.training.step import Trainer

SILENT = FitOptions(console=None, plot=False, measure_peak=False)


def short(data: Path, **changes: Any) -> TrainConfig:
    """Ten steps; evaluation at 4 and 8, a checkpoint at 5."""
    defaults = {"schedule": ScheduleConfig(warmup_steps=2, total_steps=10), "eval_every": 4, "save_every": 5}
    return tiny_config(data, **{**defaults, **changes})


def events(folder: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["event"]) for line in metrics.read(folder / "events.jsonl")]


def test_a_run_leaves_a_complete_folder(data: Path, ram_path: Path) -> None:
    text = io.StringIO()
    config = short(data, sample_every=5, log_every=2)
    console = Console(file=text, width=200)
    result = fit(
        config,
        ram_path / "run",
        sampler=lambda model, step: [f"sample at {step} of {type(model).__name__}"],
        options=FitOptions(console=console, tensorboard=True),
    )
    folder = result.folder
    lines = metrics.read(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    evaluated = [line for line in lines if "held_out_nats_per_token" in line]
    assert [(line["step"], line["held_out_tokens"]) for line in evaluated] == [(4, 64), (8, 64), (10, 204)]
    assert evaluated[-1]["final"] and result.held_out is not None
    assert result.held_out.nats_per_token == evaluated[-1]["held_out_nats_per_token"]
    assert (result.total_tokens, result.n_skipped, result.bit_exact) == (640, 0, True)
    assert result.checkpoint == folder / "checkpoints" / "step-00000010"
    assert result.elapsed_s > 0 and result.peak_flops is not None and result.peak_flops > 0
    assert load(TrainConfig, folder / "config.yaml") == config
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [line["texts"] for line in metrics.read(folder / "samples.jsonl")] == [
        ["sample at 5 of GPT"],
        ["sample at 10 of GPT"],
    ]
    assert any(path.name.startswith("events.out") for path in (folder / "tensorboard").iterdir())
    assert events(folder) == [(0, "started"), (10, "finished")]
    shown = text.getvalue()
    for part in (
        "step 2/10  loss ",
        "tok/s",
        "of peak",
        "ETA",
        "bits/byte",
        "sample at 10 of GPT",
        "finished",
    ):
        assert part in shown
    assert "step 3/10" not in shown


def test_a_checkpoint_holds_all_a_stranger_needs(data: Path, ram_path: Path) -> None:
    config = short(data)
    path = fit(config, ram_path / "run", options=SILENT).checkpoint
    checkpoint = CheckpointStore(path.parent).load(path)
    assert checkpoint.documents["config.json"] == json.loads(json.dumps(to_dict(config)))
    assert checkpoint.documents["environment.json"]["torch"] == torch.__version__
    assert checkpoint.blobs["tokenizer.json"] == b"{}"
    model = GPT.from_arrays(checkpoint.tensors["model"], config.model)
    assert sum(p.numel() for p in model.parameters()) == config.model.n_params


def test_a_used_folder_needs_resume(data: Path, ram_path: Path) -> None:
    config = short(data)
    fit(config, ram_path / "run", options=SILENT)
    before = (ram_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already: add --resume"):
        fit(config, ram_path / "run", options=SILENT)
    assert (ram_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_left_alone(data: Path, ram_path: Path, resume: bool) -> None:
    (ram_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        fit(short(data), ram_path, resume=resume, options=SILENT)
    assert os.listdir(ram_path) == ["thesis.tex"]


def test_a_file_is_no_folder(data: Path, ram_path: Path) -> None:
    (ram_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        fit(short(data), ram_path / "run", options=SILENT)


def test_resuming_nothing_starts(data: Path, ram_path: Path) -> None:
    assert fit(short(data), ram_path / "run", resume=True, options=SILENT).total_tokens == 640


def test_resuming_a_finished_run_changes_nothing(data: Path, ram_path: Path) -> None:
    first = fit(short(data), ram_path / "run", options=SILENT)
    before = (ram_path / "run" / "metrics.jsonl").read_bytes()
    second = fit(short(data), ram_path / "run", resume=True, options=SILENT)
    assert (ram_path / "run" / "metrics.jsonl").read_bytes() == before
    assert (second.held_out, second.checkpoint) == (first.held_out, first.checkpoint)
    assert second.elapsed_s > 0


def test_only_damaged_checkpoints_stop_a_resume(data: Path, ram_path: Path) -> None:
    fit(short(data), ram_path / "run", options=SILENT)
    for path in (ram_path / "run" / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be loaded"):
        fit(short(data), ram_path / "run", resume=True, options=SILENT)


def test_a_folder_in_use_is_refused(data: Path, ram_path: Path) -> None:
    (ram_path / "run").mkdir()
    with RunLock(ram_path / "run"), pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"):
        fit(short(data), ram_path / "run", options=SILENT)


def test_missing_data_leaves_no_folder_behind(ram_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        fit(short(ram_path / "nothing"), ram_path / "run", options=SILENT)
    assert not (ram_path / "run").exists()


def test_ids_outside_the_vocabulary_are_refused(data: Path, ram_path: Path) -> None:
    config = short(data)
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=50))
    with pytest.raises(DataError, match=r"outside the model's vocabulary of 50; set model\.vocab_size=61"):
        fit(small, ram_path / "run", options=SILENT)


def test_a_corpus_shorter_than_a_window_is_refused(ram_path: Path) -> None:
    write_data(ram_path / "data", n_train=10)
    with pytest.raises(DataError, match="fewer than one window"):
        fit(short(ram_path / "data"), ram_path / "run", options=SILENT)


def test_other_data_under_the_same_name_is_refused(ram_path: Path) -> None:
    config = short(write_data(ram_path / "data"))
    fit(config, ram_path / "run", options=SILENT)
    shutil.rmtree(ram_path / "data")
    write_data(ram_path / "data", n_train=1_999)
    with pytest.raises(DataError, match="is not the data this run was trained on"):
        fit(config, ram_path / "run", resume=True, options=SILENT)


def test_another_config_is_refused_and_a_free_key_may_change(data: Path, ram_path: Path) -> None:
    config = short(data)
    fit(config, ram_path / "run", options=SILENT)
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=0.5))
    with pytest.raises(ConfigError, match=r"cannot resume with another optim\.peak_lr: 0\.01 -> 0\.5"):
        fit(other, ram_path / "run", resume=True, options=SILENT)
    free = dataclasses.replace(config, keep=2)
    assert fit(free, ram_path / "run", resume=True, options=SILENT).bit_exact
    assert load(TrainConfig, ram_path / "run" / "config.yaml") == free
    assert "keep: 3 -> 2" in (ram_path / "run" / "events.jsonl").read_text()


def interrupted_at_5(config: TrainConfig, folder: Path) -> None:
    def stop(model: object, step: int) -> list[str]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return []

    with pytest.raises(Interrupted, match=r"SIGINT: stopped after step 5, saved in .*; go on with --resume"):
        fit(dataclasses.replace(config, sample_every=1), folder, sampler=stop, options=SILENT)


def test_another_rounding_is_reported_and_remembered(data: Path, ram_path: Path) -> None:
    config = short(data)
    interrupted_at_5(config, ram_path / "run")
    inexact = dataclasses.replace(config, micro_batch_size=2)
    assert not fit(inexact, ram_path / "run", resume=True, options=SILENT).bit_exact
    text = (ram_path / "run" / "events.jsonl").read_text()
    assert "micro_batch_size: 4 -> 2" in text and "bit_exact: false" in text
    assert not fit(inexact, ram_path / "run", resume=True, options=SILENT).bit_exact


@pytest.mark.parametrize("name", sorted(environment.fingerprint(World())))
def test_another_environment_is_reported(
    data: Path, ram_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(data, schedule=ScheduleConfig(warmup_steps=0, total_steps=1))
    now = environment.fingerprint(World())
    monkeypatch.setattr("wafergpt.training.fit.fingerprint", lambda world: {**now, name: "another"})
    fit(config, ram_path / "run", options=SILENT)
    monkeypatch.undo()
    assert not fit(config, ram_path / "run", resume=True, options=SILENT).bit_exact
    assert f"environment changed: {name} was 'another'" in (ram_path / "run" / "events.jsonl").read_text()


def test_a_new_entry_of_the_environment_is_a_mismatch() -> None:
    assert environment.mismatches({"a": 1}, {"a": 1, "b": 2}) == ["b was None, is 2"]
    assert environment.mismatches({"a": 1, "c": 0}, {"a": 1}) == ["c was 0, is None"]
    assert environment.mismatches({"a": 1}, {"a": 1}) == []


def test_a_run_of_bad_numbers_stops_by_name(
    data: Path, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = Trainer._backward
    monkeypatch.setattr(
        Trainer, "_backward", lambda self: backward(self) if self.state.step < 6 else float("nan")
    )
    with pytest.raises(NonFiniteError, match="step 16: loss nan"):
        fit(tiny_config(data, save_every=3), ram_path / "run", options=SILENT)
    assert events(ram_path / "run")[-1] == (16, "stopped")
    newest = CheckpointStore(ram_path / "run" / "checkpoints").load_newest()
    assert (newest.step, newest.documents["state.json"]["n_skipped_in_a_row"]) == (15, 9)


def test_a_full_disk_keeps_the_last_checkpoint(
    data: Path, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointStore.save

    def full(self: CheckpointStore, step: int, *rest: Any) -> Path:
        if step == 10:
            raise StorageError("cannot save the checkpoint of step 10: No space left on device")
        return save(self, step, *rest)

    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        fit(short(data), ram_path / "run", options=SILENT)
    monkeypatch.undo()
    assert fit(short(data), ram_path / "run", resume=True, options=SILENT).total_tokens == 640
    assert "resumed" in [name for _, name in events(ram_path / "run")]


def test_what_is_missing_or_odd_is_said(ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(ram_path / "data")
    shutil.rmtree(ram_path / "data" / "held_out")
    config = short(ram_path / "data")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=64),
        optim=dataclasses.replace(config.optim, eps=0.1),
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = io.StringIO()
    options = FitOptions(console=Console(file=text, width=200), measure_peak=False)
    assert fit(config, ram_path / "run", options=options).held_out is None
    shown = text.getvalue()
    assert "the data has no held-out part, so nothing is evaluated" in shown
    assert "the model's vocabulary has 64 entries, the data's 61; the rest is never used" in shown
    assert "no loss curve drawn: the loss curve needs matplotlib" in shown


def test_an_epsilon_above_the_rule_is_said(data: Path, ram_path: Path) -> None:
    config = short(data)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, eps=0.1))
    fit(config, ram_path / "run", options=SILENT)
    assert "optim.eps = 0.1 is above sqrt(mean of v)/1000" in (ram_path / "run" / "events.jsonl").read_text()


def test_without_tensorboard_the_install_line_is_named(
    data: Path, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafergpt\[tensorboard\]'"):
        fit(short(data), ram_path / "run", options=dataclasses.replace(SILENT, tensorboard=True))
    assert not (ram_path / "run").exists()


def test_a_terminal_gets_a_live_line(data: Path) -> None:
    text = io.StringIO()
    config = short(data)
    console = Console(file=text, force_terminal=True, width=150)
    report = StepReport(
        step=3, loss=2.5, lr=0.01, grad_norm=1.0, n_tokens=64, total_tokens=192, skipped=True, elapsed_s=0.1
    )  # fmt: skip
    with Display(console, config, first_step=0) as display:
        display.peak_flops = 1e9
        display.held_out(2, HeldOutLoss(nats_per_token=2.0, bits_per_byte=1.25, n_tokens=10))
        display.step(report, tokens_per_s=640.0)
    shown = text.getvalue()
    for part in ("step 3/10", "loss 2.500", "held out 2.000 (1.250 bits/byte)", "640 tok/s", "ETA 0.70s"):
        assert part in shown
    assert "the step was skipped" in shown


def test_the_share_of_the_peak_counts_model_flops(data: Path) -> None:
    config = short(data)
    flops_per_token = 6 * (12 * 2 * 32**2 + 61 * 32) + 6 * 2 * 32 * 16
    assert peak_share(config, 1000.0, 1e9) == 1000 * flops_per_token / 1e9


def test_cuda_is_refused_where_there_is_none(data: Path) -> None:
    from wafergpt.training.config import Device

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="device = cuda, but torch finds no CUDA device"):
        pick_device(Device.CUDA, 0)
    assert pick_device(Device.AUTO, 0).type == "cpu"


def test_a_second_signal_acts_as_always() -> None:
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(lambda: asked.append(1)) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert (signals.received, asked) == (signal.SIGINT, [1])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with StopSignals(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
