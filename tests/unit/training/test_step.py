"""One step: nothing changes when a number is not finite; accumulation; a stop in the middle."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import skip_unless_supported, tiny_config

from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.training import step as training_step
from wafergpt.training.config import Precision
from wafergpt.training.distributed import World
from wafergpt.training.loop import RandomBatches, measure_tokens_per_s, prepare, steps
from wafergpt.training.state import TrainState, differences
from wafergpt.training.step import Trainer

COUNTERS = ["n_skipped", "n_skipped_in_a_row", "sample_index", "step"]


class Injection:
    """Spoils one step of a trainer at one place, then leaves it alone."""

    def __init__(self, trainer: Trainer, place: str, value: float) -> None:
        self.is_on = False
        self.value = value
        parameters = dict(trainer.model.named_parameters())
        if place == "loss":
            inner = trainer._loss
            trainer._loss = lambda *ids: inner(*ids) + (value if self.is_on else 0.0)  # type: ignore[assignment]
        elif place == "embedding":
            trainer.model.wte.register_forward_hook(lambda module, args, out: self.spoil(out))
        else:  # one element of one gradient
            parameters[place].register_hook(self.spoil)

    def spoil(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.is_on:
            return tensor
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = self.value
        return tensor


def bits(trainer: Trainer) -> tuple[TrainState, dict[str, torch.Tensor]]:
    """A copy of the state and of the weights the model computes with."""
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return copy.deepcopy(trainer.state), weights


def changed_by_bad_step(trainer: Trainer, injection: Injection) -> list[str]:
    """Take one spoiled step; names of all that changed."""
    state, weights = bits(trainer)
    injection.is_on = True
    report = trainer.step()
    injection.is_on = False
    assert report is not None
    after = dict(trainer.model.named_parameters())
    moved = [name for name in weights if not torch.equal(weights[name], after[name])]
    return sorted(differences(state, trainer.state)) + moved


@pytest.mark.parametrize("n_before", [0, 1, 7])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "embedding", "wte.weight", "h.1.attn.c_attn.weight", "ln_f.bias"])
@pytest.mark.parametrize("precision", list(Precision))
def test_a_bad_step_changes_only_the_counters(
    data: Path, precision: Precision, place: str, value: float, n_before: int
) -> None:
    skip_unless_supported(precision)
    trainer = prepare(tiny_config(data, precision=precision))
    injection = Injection(trainer, place, value)
    for _ in range(n_before):
        trainer.step()
    assert changed_by_bad_step(trainer, injection) == COUNTERS
    healthy = trainer.step()
    assert healthy is not None and not healthy.skipped
    assert (trainer.state.n_skipped, trainer.state.n_skipped_in_a_row) == (1, 0)


def test_a_gradient_too_large_to_square_is_skipped_too(data: Path) -> None:
    trainer = prepare(tiny_config(data))
    assert changed_by_bad_step(trainer, Injection(trainer, "wpe.weight", 1e30)) == COUNTERS


@pytest.mark.parametrize("n_micro_batches", [2, 4])
def test_a_bad_micro_batch_is_not_hidden_by_the_others(data: Path, n_micro_batches: int) -> None:
    trainer = prepare(tiny_config(data, micro_batch_size=4 // n_micro_batches))
    assert changed_by_bad_step(trainer, Injection(trainer, "ln_f.weight", math.nan)) == COUNTERS


def test_multiplying_by_zero_instead_of_skipping_would_be_seen(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: 0 x NaN is NaN."""
    trainer = prepare(tiny_config(data))
    injection = Injection(trainer, "wte.weight", math.nan)
    trainer.step()
    monkeypatch.setattr(training_step.math, "isfinite", lambda value: True)
    monkeypatch.setattr(training_step.optim, "clip_factor", lambda norm, clip_norm: 0.0)
    assert changed_by_bad_step(trainer, injection) != COUNTERS


def test_an_update_after_an_unseen_nan_would_be_seen(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: only the loss is checked."""
    trainer = prepare(tiny_config(data))
    injection = Injection(trainer, "ln_f.bias", math.inf)
    monkeypatch.setattr(training_step.optim, "global_norm", lambda grads: 1.0)
    assert changed_by_bad_step(trainer, injection) != COUNTERS


def test_ten_bad_steps_in_a_row_stop_the_run(data: Path) -> None:
    trainer = prepare(tiny_config(data))
    trainer.step()
    injection = Injection(trainer, "loss", math.nan)
    state, _ = bits(trainer)
    for _ in range(9):
        changed_by_bad_step(trainer, injection)
    injection.is_on = True
    with pytest.raises(NonFiniteError, match="10 steps in a row were not finite"):
        trainer.step()
    assert sorted(differences(state, trainer.state)) == COUNTERS


def test_nine_bad_steps_and_a_good_one_start_the_count_again(data: Path) -> None:
    trainer = prepare(tiny_config(data))
    injection = Injection(trainer, "loss", math.inf)
    for _ in range(3):
        for _ in range(9):
            changed_by_bad_step(trainer, injection)
        trainer.step()
    assert trainer.state.n_skipped == 27


def accumulated_state(data: Path, precision: Precision, micro_batch_size: int) -> TrainState:
    """After the second update, the first whose learning rate is not 0."""
    config = tiny_config(data, precision=precision, micro_batch_size=micro_batch_size)
    trainer = prepare(config)
    trainer.step()
    trainer.step()
    return trainer.state


def moment_error(a: TrainState, b: TrainState) -> float:
    """||difference|| / ||b|| of Adam's first moment, which is linear in the two clipped gradients."""
    left, right = (torch.cat([m.flatten() for m in state.exp_avg.values()]) for state in (a, b))
    return float((left - right).norm() / right.norm())


# float32: one backward pass and four that are summed differ in the order of some 64 additions (4 x 16 tokens)
# of 2^-24 each, times the depth of about ten operations: 10 x sqrt(64) x 6e-8 = 5e-6.
# bfloat16: gradients are rounded to 8 bits once (accumulation 1) or once per micro-batch; roundings of
# 2^-9 relative, independent and four of them, plus those inside the backward pass: 10 x 2^-9 = 2e-2.
@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 5e-6), (Precision.BF16, 2e-2)])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    data: Path, precision: Precision, tolerance: float, micro_batch_size: int
) -> None:
    whole = accumulated_state(data, precision, 4)
    assert moment_error(accumulated_state(data, precision, micro_batch_size), whole) < tolerance


def test_a_lost_micro_batch_would_be_seen(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = accumulated_state(data, Precision.BF16, 4)
    add = Trainer._add_gradients
    monkeypatch.setattr(Trainer, "_add_gradients", lambda self, is_first: add(self, True))
    assert moment_error(accumulated_state(data, Precision.BF16, 1), whole) > 2e-2


def test_bf16_gradients_are_summed_in_float32(data: Path) -> None:
    trainer = prepare(tiny_config(data, micro_batch_size=1))
    trainer.step()
    assert {grad.dtype for grad in trainer._sums.values()} == {torch.float32}


def test_a_stop_between_micro_batches_changes_nothing(data: Path) -> None:
    config = tiny_config(data, micro_batch_size=1)
    trainer = prepare(config)
    trainer.step()
    state, _ = bits(trainer)
    batch = trainer.batches.batch
    n_read = 0

    class Stopping:
        def batch(self, index0: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
            nonlocal n_read
            n_read += 1
            if n_read == 3:
                trainer.request_stop()
            return batch(index0, batch_size)

        def n_tokens(self, n_samples: int) -> int:
            return 16 * n_samples

    trainer.batches = Stopping()
    assert trainer.step() is None
    assert n_read == 3
    assert differences(state, trainer.state) == []
    assert all(p.grad is None for p in trainer.model.parameters())


class Recorder:
    """Remembers which samples were asked for."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def batch(self, index0: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        self.samples += range(index0, index0 + batch_size)
        zeros = np.zeros((batch_size, 16), np.int64)
        return zeros, zeros

    def n_tokens(self, n_samples: int) -> int:
        return 16 * n_samples


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_each_batch_without_gap_or_overlap(
    data: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "total", lambda self, values: [self.size * value for value in values])
    monkeypatch.setattr(World, "average", lambda self, tensors: None)
    monkeypatch.setattr(World, "replicate", lambda self, module: module)
    config = tiny_config(data, batch_size=8, micro_batch_size=2)
    for n_done in range(2):
        seen: list[int] = []
        for rank in range(size):
            recorder = Recorder()
            trainer = prepare(config, batches=recorder, world=World(rank=rank, size=size))
            trainer.state.sample_index = 8 * n_done
            trainer.step()
            seen += recorder.samples
        assert seen == list(range(8 * n_done, 8 * n_done + 8))


def test_a_batch_that_does_not_split_over_processes_is_refused(data: Path) -> None:
    with pytest.raises(
        ConfigError, match="batch_size = 4 is not a multiple of micro_batch_size = 4 x 2 proc"
    ):
        prepare(tiny_config(data), world=World(rank=0, size=2))


def test_the_loop_is_the_callers_for(data: Path) -> None:
    config = tiny_config(data)
    trainer = prepare(config)
    reports = []
    for report in steps(config, trainer):
        reports.append(report)
        if report.step == 12:
            trainer.request_stop()
    assert [report.step for report in reports] == list(range(1, 13))
    assert reports[-1].total_tokens == 12 * 64
    assert reports[0].lr == 0.0 and reports[0].n_tokens == 64


def test_training_learns_and_equals_itself(data: Path) -> None:
    config = tiny_config(data)
    first = [dataclasses.replace(report, elapsed_s=0) for report in steps(config)]
    second = [dataclasses.replace(report, elapsed_s=0) for report in steps(config)]
    other = [report.loss for report in steps(dataclasses.replace(config, seed=12))]
    assert first == second
    assert len(first) == 40 and first[-1].loss < first[0].loss - 1.5
    assert all(a.loss != b for a, b in zip(first, other, strict=True))


def test_the_global_random_state_plays_no_part(data: Path) -> None:
    config = tiny_config(data)
    quiet, noisy = prepare(config), prepare(config)
    for n in range(5):
        quiet.step()
        torch.manual_seed(n)
        np.random.seed(n)
        noisy.step()
    assert differences(quiet.state, noisy.state) == []


def test_speed_is_measured_without_data(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "nothing")
    assert measure_tokens_per_s(config, duration_s=0.01) > 0
    inputs, labels = RandomBatches(61, 16).batch(5, 3)
    assert inputs.shape == labels.shape == (3, 16)
    assert np.array_equal(inputs[:, 1:], labels[:, :-1])
    with pytest.raises(ConfigError, match="duration_s"):
        measure_tokens_per_s(config, duration_s=0)


def test_bad_values_reach_the_report(data: Path) -> None:
    trainer = prepare(tiny_config(data))
    injection = Injection(trainer, "loss", math.nan)
    injection.is_on = True
    report = trainer.step()
    assert report is not None and report.skipped and math.isnan(report.loss)
