"""From a plan and the shape of its examples to a fine-tuning run."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt.finetuning.config import ExamplesConfig, FineTuneConfig
from wafergpt.runs.finetune import DataShape, Plan, finetune
from wafergpt.runs.quickstart import small_model


def run_of(batch: int, mean: int, longest: int, *, n: int = 600, window: int = 512) -> FineTuneConfig:
    model = small_model(d_model=64, n_layers=2, vocab_size=512, max_seq_len=window)
    plan = Plan(
        base=Path("base"), data=Path("data"), examples=ExamplesConfig(task="chat"), batch_examples=batch
    )
    return finetune(plan, model, DataShape(n_examples=n, n_tokens=n * mean, longest=longest))


@pytest.mark.parametrize("batch", [1, 4, 16, 100])
@pytest.mark.parametrize(("mean", "longest"), [(10, 20), (80, 160), (300, 500)])
def test_a_step_has_about_as_many_examples_as_asked(batch: int, mean: int, longest: int) -> None:
    config = run_of(batch, mean, longest)
    positions = config.batch_size * config.data.seq_len
    least = max(batch * mean, longest)  # a row holds the longest example, whole
    assert least * 0.75 <= positions <= least * 1.5
    assert config.schedule.total_steps == pytest.approx(3 * 600 * mean / positions, rel=0.03, abs=1)


def test_rows_hold_the_longest_example_and_fit_the_window() -> None:
    assert run_of(4, 10, 20).data.seq_len == 40
    assert run_of(100, 10, 20).data.seq_len == 256
    assert run_of(100, 300, 500).data.seq_len == 500
    assert run_of(100, 10, 20, window=64).data.seq_len == 64
