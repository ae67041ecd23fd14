"""The learning rate against the published 111M and 1.3B schedules."""

from __future__ import annotations

import math

import pytest

from wafergpt.training.config import Decay, ScheduleConfig
from wafergpt.training.schedule import learning_rate

# Model Zoo Cerebras_GPT/111m.yaml: warm-up 1525 from 0 to 6e-4, then 7512 linear steps to 6e-5.
LINEAR_111M = ScheduleConfig(warmup_steps=1525, total_steps=9037)
# 1p3b.yaml: warm-up 346 to 2e-4, then 23988 cosine steps to 2e-5.
COSINE_1P3B = ScheduleConfig(warmup_steps=346, total_steps=24334, decay=Decay.COSINE)


def test_the_first_update_has_rate_zero() -> None:
    assert learning_rate(LINEAR_111M, 6e-4, 0) == 0.0


def test_warm_up_ends_exactly_at_the_peak() -> None:
    assert learning_rate(LINEAR_111M, 6e-4, 1525) == 6e-4
    assert learning_rate(COSINE_1P3B, 2e-4, 346) == 2e-4


@pytest.mark.parametrize(("n_done", "lr"), [(61, 6e-4 * 61 / 1525), (1525 + 3756, 3.3e-4), (9037, 6e-5)])
def test_linear_values(n_done: int, lr: float) -> None:
    assert math.isclose(learning_rate(LINEAR_111M, 6e-4, n_done), lr, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("n_done", "lr"),
    [(346 + 11994, 1.1e-4), (346 + 5997, 2e-5 + 1.8e-4 * 0.5 * (1 + math.sqrt(0.5))), (24334, 2e-5)],
)
def test_cosine_values(n_done: int, lr: float) -> None:
    assert math.isclose(learning_rate(COSINE_1P3B, 2e-4, n_done), lr, rel_tol=1e-12)


def test_after_the_last_step_it_stays_at_the_end() -> None:
    assert learning_rate(LINEAR_111M, 6e-4, 20_000) == learning_rate(LINEAR_111M, 6e-4, 9037)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert learning_rate(ScheduleConfig(warmup_steps=0, total_steps=10), 1.0, 0) == 1.0
