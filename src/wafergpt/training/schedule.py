"""The learning rate as a pure function of the step (no torch, no state to lose on resume)."""

from __future__ import annotations

import math

from wafergpt.training.config import Decay, ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak_lr: float, n_steps_done: int) -> float:
    """The base learning rate of the update that follows `n_steps_done` finished ones.

    The formulas and the counting from 0, so that the very first update has rate 0, are those of the Model Zoo
    (modelzoo/common/pytorch/optim/lr_scheduler.py, Release 1.9.1): with W warm-up and N total steps,
    peak * n / W for n < W, then with t = (n - W) / (N - W)
    linear end + (peak - end) (1 - t), cosine end + (peak - end) (1 + cos(pi t)) / 2; after N the end.
    """
    if n_steps_done < schedule.warmup_steps:
        return peak_lr * n_steps_done / schedule.warmup_steps
    end_lr = peak_lr * schedule.final_fraction
    n_decay_steps = schedule.total_steps - schedule.warmup_steps
    progress = min((n_steps_done - schedule.warmup_steps) / n_decay_steps, 1.0)
    remaining = 1 - progress if schedule.decay is Decay.LINEAR else 0.5 * (1 + math.cos(math.pi * progress))
    mixed = peak_lr * remaining + end_lr * (1 - remaining)  # this form hits both ends exactly
    return min(mixed, peak_lr)  # where the end is the peak, rounding may lift it by one step of float64
