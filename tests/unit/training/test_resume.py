"""Stopping a run at any step and going on gives the bits of the run that was never stopped."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import skip_unless_supported, tiny_config

from wafergpt.checkpoints.native import Checkpoint, CheckpointStore
from wafergpt.config import override, to_dict
from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.training import loop, metrics
from wafergpt.training import state as training_state
from wafergpt.training import step as training_step
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.training.fit import FitOptions, fit
from wafergpt.training.metrics import CLOCK_FIELDS
from wafergpt.training.optim import bind_weights
from wafergpt.training.report import StepReport
from wafergpt.training.resume import Change, change_class, compare
from wafergpt.training.signals import Interrupted
from wafergpt.training.state import TrainState, differences
from wafergpt.training.step import Trainer

SILENT = FitOptions(console=None, plot=False, measure_peak=False)
N_STEPS = 40


def bad_steps(trainer: Trainer) -> None:
    """Make the losses of steps 4 and 23 NaN, so that skips are part of what must survive."""
    inner = trainer._loss

    def loss(*ids: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = inner(*ids)
        return value * torch.nan if trainer.state.step in (3, 22) else value

    trainer._loss = loss  # type: ignore[assignment]


def run(trainer: Trainer, n_steps: int) -> list[StepReport]:
    """Reports of `n_steps` steps, without the clock."""
    reports = []
    for _ in range(n_steps):
        report = trainer.step()
        assert report is not None
        reports.append(
            dataclasses.replace(report, elapsed_s=0.0, loss=report.loss if not report.skipped else -1.0)
        )
    return [
        dataclasses.replace(r, grad_norm=-1.0) if r.skipped else r for r in reports
    ]  # NaN is not equal to NaN


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    return Checkpoint(
        step=trainer.state.step,
        path=Path("memory"),
        tensors=copy.deepcopy(training_state.to_arrays(trainer.state)),
        documents={loop.STATE_DOCUMENT: training_state.to_document(trainer.state)},
        blobs={},
    )


def new_trainer(config: TrainConfig, checkpoint: Checkpoint | None = None) -> Trainer:
    trainer = loop.prepare(config, checkpoint=checkpoint)
    bad_steps(trainer)
    return trainer


@dataclasses.dataclass(frozen=True)
class WholeRun:
    """A run that was never stopped, and what it would have saved after each step."""

    reports: list[StepReport]
    checkpoints: list[Checkpoint]
    state: TrainState


@functools.cache
def whole(config: TrainConfig) -> WholeRun:
    trainer = new_trainer(config)
    checkpoints, reports = [checkpoint_of(trainer)], []
    for _ in range(N_STEPS):
        reports += run(trainer, 1)
        checkpoints.append(checkpoint_of(trainer))
    return WholeRun(reports=reports, checkpoints=checkpoints, state=trainer.state)


def what_differs(config: TrainConfig, stop_at: int, plant: Callable[[], None] = lambda: None) -> list[str]:
    """Stop after `stop_at` steps, resume (with a planted bug), finish; everything unlike the whole run."""
    reference = whole(config)
    plant()
    resumed = new_trainer(config, reference.checkpoints[stop_at])
    found = [
        f"report of step {a.step}"
        for a, b in zip(reference.reports[stop_at:], run(resumed, N_STEPS - stop_at), strict=True)
        if a != b
    ]
    return found + differences(reference.state, resumed.state)


# With 124 windows and batch 16 the epoch changes inside step 8; steps 4 and 23 are skipped. Further down,
# every single step is stopped at.
@pytest.mark.parametrize("stop_at", [4, 8, 23, 39])
@pytest.mark.parametrize("micro_batch_size", [16, 4])
@pytest.mark.parametrize("precision", list(Precision))
def test_resume_is_bit_exact(data: Path, precision: Precision, micro_batch_size: int, stop_at: int) -> None:
    skip_unless_supported(precision)
    config = tiny_config(data, precision=precision, batch_size=16, micro_batch_size=micro_batch_size)
    assert what_differs(config, stop_at) == []


def lose(field: str, change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A planted bug: loading gets one field of the state wrong."""
    load = training_state.from_checkpoint

    def planted(*args: Any) -> TrainState:
        state = load(*args)
        setattr(state, field, change(getattr(state, field)))
        return state

    return lambda patch: patch.setattr(training_state, "from_checkpoint", planted)


def zeros(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16().float() for name, tensor in tensors.items()}


def seed_lost(patch: pytest.MonkeyPatch) -> None:
    opened = loop.open_batches
    patch.setattr(loop, "open_batches", lambda config: opened(dataclasses.replace(config, seed=0)))


def epoch_lost(patch: pytest.MonkeyPatch) -> None:
    """The order of epoch 0 again in every epoch."""
    batch = loop.Loader.sample_ids
    patch.setattr(loop.Loader, "sample_ids", lambda self, epoch, indices: batch(self, 0, indices))


def schedule_off_by_one(patch: pytest.MonkeyPatch) -> None:
    rate = training_step.learning_rate
    patch.setattr(training_step, "learning_rate", lambda s, peak, n: rate(s, peak, n + 1))


def accumulation_lost(patch: pytest.MonkeyPatch) -> None:
    add = Trainer._add_gradients
    patch.setattr(Trainer, "_add_gradients", lambda self, is_first: add(self, True))


def weights_not_refreshed(patch: pytest.MonkeyPatch) -> None:
    """The model computes with its initial weights after a resume."""

    def planted(model: Any, state: TrainState, precision: Precision) -> dict[str, torch.Tensor]:
        weights = bind_weights(model, state, precision)
        weights["wte.weight"].mul_(1.01)
        return weights

    patch.setattr(training_step.optim, "bind_weights", planted)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(seed_lost, id="random seed lost"),
        pytest.param(epoch_lost, id="epoch lost"),
        pytest.param(lose("sample_index", lambda n: n + 1), id="data offset +1"),
        pytest.param(lose("sample_index", lambda n: n - 1), id="data offset -1"),
        pytest.param(schedule_off_by_one, id="schedule off by one"),
        pytest.param(lose("step", lambda n: n + 1), id="step off by one"),
        pytest.param(lose("exp_avg", zeros), id="first moment lost"),
        pytest.param(lose("exp_avg_sq", zeros), id="second moment lost"),
        pytest.param(lose("master", rounded), id="masters rounded to bfloat16"),
        pytest.param(lose("n_skipped", lambda n: 0), id="skip count lost"),
        pytest.param(accumulation_lost, id="accumulation lost"),
        pytest.param(weights_not_refreshed, id="weights not refreshed"),
    ],
)
def test_a_planted_bug_is_caught(
    data: Path, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data, batch_size=16, micro_batch_size=4)
    assert what_differs(config, 28, lambda: plant(monkeypatch)) != []


def test_skips_in_a_row_are_counted_across_a_resume(data: Path) -> None:
    config = tiny_config(data)

    def always_nan(trainer: Trainer) -> Trainer:
        trainer._loss = lambda *ids: trainer.model.loss(*ids) * torch.nan  # type: ignore[assignment]
        return trainer

    first = always_nan(loop.prepare(config))
    run(first, 6)
    second = always_nan(loop.prepare(config, checkpoint=checkpoint_of(first)))
    run(second, 3)
    with pytest.raises(NonFiniteError):
        second.step()


# ---- the same through the standard caller, files included -------------------------------------------------


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """All metrics lines without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK_FIELDS}
        for line in metrics.read(folder / "metrics.jsonl")
    ]


def final_state(folder: Path) -> TrainState:
    checkpoint = CheckpointStore(folder / "checkpoints").load_newest()
    config = tiny_config(Path("unused"))
    return training_state.from_checkpoint(
        checkpoint.tensors,
        checkpoint.documents[loop.STATE_DOCUMENT],
        config.model.parameter_shapes(),
        torch.device("cpu"),
    )


def outcome_differs(a: Path, b: Path) -> list[str]:
    found = differences(final_state(a), final_state(b))
    return found if metrics_of(a) == metrics_of(b) else [*found, "metrics"]


@pytest.fixture(scope="module")
def fit_config(data: Path) -> TrainConfig:
    return tiny_config(data, save_every=1000, sample_every=1)


@pytest.fixture(scope="module")
def whole_run(fit_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    fit(fit_config, folder, options=SILENT)
    return folder


def stop_and_resume(config: TrainConfig, folder: Path, stop_at: int, number: int = signal.SIGTERM) -> None:
    """Get a real signal during the last sampling before `stop_at + 1`, save, leave, and go on."""

    def kill_at(model: object, step: int) -> list[str]:
        if step == stop_at:
            os.kill(os.getpid(), number)
        return []

    with pytest.raises(Interrupted) as caught:
        fit(config, folder, sampler=kill_at, options=SILENT)
    assert caught.value.exit_code == 128 + number
    assert (folder / "checkpoints" / f"step-{stop_at:08d}").is_dir()
    fit(config, folder, resume=True, options=SILENT)


@pytest.mark.parametrize("stop_at", range(1, N_STEPS))
def test_stopping_at_every_step(
    fit_config: TrainConfig, whole_run: Path, ram_path: Path, stop_at: int
) -> None:
    number = signal.SIGTERM if stop_at % 2 else signal.SIGINT
    stop_and_resume(fit_config, ram_path / "run", stop_at, number)
    assert outcome_differs(ram_path / "run", whole_run) == []


class CrashError(Exception):
    """Stands for a bug, a full disk or a pulled plug between steps."""


def crash_and_resume(config: TrainConfig, folder: Path, plant: Callable[[], None] = lambda: None) -> None:
    """Die after step 15 of a run that saved step 10, then go on (with a planted bug)."""

    def crash(model: object, step: int) -> list[str]:
        if step == 15:
            raise CrashError
        return []

    config = dataclasses.replace(config, save_every=10)
    with pytest.raises(CrashError):
        fit(config, folder, sampler=crash, options=SILENT)
    plant()
    fit(config, folder, resume=True, options=SILENT)


def test_steps_after_the_last_checkpoint_are_done_again(
    fit_config: TrainConfig, whole_run: Path, ram_path: Path
) -> None:
    crash_and_resume(fit_config, ram_path / "run")
    assert outcome_differs(ram_path / "run", whole_run) == []


def test_metrics_that_are_not_cut_would_be_seen(
    fit_config: TrainConfig, whole_run: Path, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = metrics.StepLog.__init__

    def plant() -> None:
        monkeypatch.setattr(
            metrics.StepLog, "__init__", lambda self, path, last_step: opened(self, path, 10**9)
        )

    crash_and_resume(fit_config, ram_path / "run", plant)
    assert outcome_differs(ram_path / "run", whole_run) == ["metrics"]


def test_a_damaged_newest_checkpoint_costs_one_interval(
    fit_config: TrainConfig, whole_run: Path, ram_path: Path
) -> None:
    def damage() -> None:
        newest = CheckpointStore(ram_path / "run" / "checkpoints").paths()[0]
        (newest / "optimizer.safetensors").write_bytes(b"x")

    crash_and_resume(dataclasses.replace(fit_config), ram_path / "run", lambda: None)
    damage()
    fit(fit_config, ram_path / "run", resume=True, options=SILENT)
    assert outcome_differs(ram_path / "run", whole_run) == []
    events = (ram_path / "run" / "events.jsonl").read_text()
    assert "passed over checkpoint step-00000040" in events and "at step 30" in events


# ---- which configurations may go on -----------------------------------------------------------------------

FREE = {"eval_every", "eval_tokens", "sample_every", "save_every", "keep", "log_every", "data.path"}
FREE |= {"schedule.stop_step"}
INEXACT = {"micro_batch_size", "device"}


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


def test_every_key_has_the_class_written_here() -> None:
    config = tiny_config(Path("data"))
    classes = {key: change_class(key) for key in leaves(to_dict(config))}
    assert {key for key, kind in classes.items() if kind is Change.FREE} == FREE
    assert {key for key, kind in classes.items() if kind is Change.INEXACT} == INEXACT


@pytest.mark.parametrize("key", sorted(leaves(to_dict(tiny_config(Path("data"))))))
def test_no_changed_key_is_ignored(key: str) -> None:
    config = tiny_config(Path("data"))
    stored = to_dict(config)
    node, *rest = [stored, *key.split(".")]
    for name in rest[:-1]:
        node = node[name]
    node[rest[-1]] = "something else"
    if key in FREE:
        assert [change.split(":")[0] for change in compare(stored, config).free] == [key]
    elif key in INEXACT:
        assert [change.split(":")[0] for change in compare(stored, config).inexact] == [key]
    else:
        with pytest.raises(ConfigError, match=f"cannot resume with another {key}: something else -> "):
            compare(stored, config)


def test_a_key_this_version_does_not_know_is_refused() -> None:
    config = tiny_config(Path("data"))
    with pytest.raises(ConfigError, match=r"dropout: 0\.1 -> None"):
        compare({**to_dict(config), "dropout": 0.1}, config)


def test_many_refused_changes_make_one_line() -> None:
    config = tiny_config(Path("data"))
    other = override(config, ["seed=1", "optim.eps=1e-9", "schedule.decay=cosine", "model.n_layers=3"])
    with pytest.raises(ConfigError, match="and 1 more") as caught:
        compare(to_dict(config), other)
    assert "\n" not in str(caught.value)
