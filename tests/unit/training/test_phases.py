"""Two runs along one learning-rate curve: stop early, go on in another run at another batch and step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_training import tiny_config

from wafergpt.checkpoints.native import load_checkpoint
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.training import loop
from wafergpt.training.config import Precision, ScheduleConfig, TrainConfig
from wafergpt.training.fit import FitOptions, fit
from wafergpt.training.schedule import learning_rate

SILENT = FitOptions(console=None, plot=False, measure_peak=False)
WHOLE = ScheduleConfig(warmup_steps=3, total_steps=12)


def config_of(data: Path, **schedule: int) -> TrainConfig:
    config = tiny_config(data, schedule=replace(WHOLE, **schedule), precision=Precision.FP32, eval_every=0)
    return replace(config, save_every=100)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_checkpoint(folder).tensors["model"])


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_two_phases_of_one_batch_are_bit_for_bit_one_run(data: Path, ram_path: Path) -> None:
    fit(config_of(data), ram_path / "whole", options=SILENT)
    first = fit(config_of(data, stop_step=7), ram_path / "first", options=SILENT)
    assert load_checkpoint(ram_path / "first").step == 7
    assert first.total_tokens == 7 * 4 * 16
    second = replace(config_of(data, first_step=7), start_from=ram_path / "first")
    result = fit(second, ram_path / "second", options=SILENT)
    assert load_checkpoint(ram_path / "second").step == 12
    assert result.total_tokens == 12 * 4 * 16  # both phases; the run's own share:
    assert second.total_tokens == 5 * 4 * 16
    assert same(weights(ram_path / "whole"), weights(ram_path / "second"))
    events = (ram_path / "second" / "events.jsonl").read_text()
    assert "place in the data are those of" in events and "the step counter starts at 7" in events
    planted = replace(second, schedule=replace(second.schedule, first_step=6))  # would repeat a rate
    fit(planted, ram_path / "planted", options=SILENT)
    assert not same(weights(ram_path / "whole"), weights(ram_path / "planted"))


def test_a_phase_at_another_batch_counts_steps_anew_and_reads_on(data: Path, ram_path: Path) -> None:
    """The arithmetic of 13B (57,000 steps of 720 are 38,000 of 1080) at a toy size: 6 of 4 are 4 of 6."""
    fit(config_of(data, stop_step=6), ram_path / "first", options=SILENT)
    second = replace(
        config_of(data, first_step=4), start_from=ram_path / "first", batch_size=6, micro_batch_size=6
    )
    trainer = loop.prepare(second)
    assert (trainer.state.step, trainer.state.sample_index, trainer.state.n_updates) == (4, 24, 6)
    report = next(loop.steps(second, trainer))
    assert report.step == 5 and report.lr == learning_rate(second.schedule, second.optim.peak_lr, 4)
    assert (trainer.state.sample_index, trainer.state.n_updates) == (30, 7)


def test_a_stopped_run_may_go_on_later(data: Path, ram_path: Path) -> None:
    fit(config_of(data), ram_path / "whole", options=SILENT)
    fit(config_of(data, stop_step=7), ram_path / "run", options=SILENT)
    result = fit(config_of(data), ram_path / "run", resume=True, options=SILENT)
    assert same(weights(ram_path / "whole"), weights(ram_path / "run"))
    assert result.held_out is not None
    lines = (ram_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum('"final": true' in line for line in lines) == 2  # evaluated where it stopped, and at the end


def test_a_phase_needs_the_right_run_before_it(data: Path, ram_path: Path) -> None:
    with pytest.raises(ConfigError, match="first_step = 7 goes on with another run; set start_from"):
        loop.prepare(config_of(data, first_step=7))
    with pytest.raises(CheckpointError, match="does not exist"):
        loop.prepare(replace(config_of(data, first_step=7), start_from=ram_path / "nothing"))
    fit(config_of(data, stop_step=1), ram_path / "first", options=SILENT)
    other = config_of(data, first_step=1)
    other = replace(other, start_from=ram_path / "first", model=replace(other.model, n_heads=4))
    with pytest.raises(ConfigError, match="is of another model"):
        loop.prepare(other)


@pytest.mark.parametrize(
    "part",
    [
        {"first_step": 12},
        {"first_step": -1},
        {"stop_step": 0},
        {"stop_step": 13},
        {"first_step": 5, "stop_step": 5},
    ],
)
def test_a_part_that_is_not_on_the_curve_is_refused(data: Path, part: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"0 <= first_step < stop_step <= schedule\.total_steps = 12"):
        config_of(data, **part)
