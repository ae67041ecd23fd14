"""Any schedule: zero, up to the peak, down to the end, no jumps."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from wafergpt.training.config import Decay, ScheduleConfig
from wafergpt.training.schedule import learning_rate


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    total = draw(st.integers(2, 400))
    return ScheduleConfig(
        warmup_steps=draw(st.integers(0, total - 1)),
        total_steps=total,
        decay=draw(st.sampled_from(Decay)),
        final_fraction=draw(st.floats(0, 1)),
    )


@settings(max_examples=200, deadline=None)
@given(schedules(), st.floats(1e-6, 1.0))
@example(ScheduleConfig(warmup_steps=0, total_steps=29, decay=Decay.COSINE, final_fraction=1.0), 0.75)
def test_it_rises_to_the_peak_then_falls_to_the_end(schedule: ScheduleConfig, peak: float) -> None:
    rates = [learning_rate(schedule, peak, n) for n in range(schedule.total_steps + 1)]
    tiny = 1e-12 * peak  # a few roundings of float64
    warm, down = rates[: schedule.warmup_steps + 1], rates[schedule.warmup_steps :]
    assert all(a < b for a, b in itertools.pairwise(warm))
    assert all(a >= b - tiny for a, b in itertools.pairwise(down))
    assert rates[schedule.warmup_steps] == max(rates) and abs(max(rates) - peak) <= tiny
    assert abs(rates[-1] - peak * schedule.final_fraction) <= tiny


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_it_never_jumps(schedule: ScheduleConfig) -> None:
    rates = [learning_rate(schedule, 1.0, n) for n in range(schedule.total_steps + 1)]
    # The steepest slopes: 1/W going up; going down 1/(N-W), times pi/2 for the cosine.
    steepest = max(1 / max(schedule.warmup_steps, 1), 1.5708 / (schedule.total_steps - schedule.warmup_steps))
    assert all(abs(b - a) <= steepest * (1 + 1e-9) for a, b in itertools.pairwise(rates))
