"""Recorded spans: all busy cycles, the same from both engines, bounded, and without a trace of their own."""

from __future__ import annotations

import numpy as np
import pytest

import wafer_lab as lab
from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.spans import END, START, SpanKind

ENGINES = ("numpy",) if native.available() else ("native", "numpy")
ALL = [(x, y) for x in range(lab.WIDTH) for y in range(lab.HEIGHT)]


def run(engine: str, pes: list[tuple[int, int]], capacity: int = 1000) -> Machine:
    machine = lab.load(Machine(lab.busy_program(), engine=engine, check=True))
    machine.record(pes, capacity=capacity)
    for _ in range(2):
        machine.launch("main")
    return machine


@pytest.mark.parametrize("engine", ENGINES)
def test_spans_are_the_busy_cycles(engine: str) -> None:
    machine = run(engine, ALL)
    busy = machine.state.busy_cycles.reshape(lab.HEIGHT, lab.WIDTH)
    for spans in machine.recorded():
        assert spans.n_lost == 0
        start, end = spans.rows[:, START], spans.rows[:, END]
        assert (end > start).all() and (start[1:] >= end[:-1]).all(), "in order, one at a time"
        assert (end - start).sum() == busy[spans.y, spans.x]
        kinds = spans.kinds.tolist()
        assert set(kinds) == {int(kind) for kind in SpanKind}
        assert kinds.count(SpanKind.LAUNCH) == kinds.count(SpanKind.END) >= 4, "main and finish, twice"


@pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")
@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_both_engines_record_the_same(capacity: int) -> None:
    one, other = (run(engine, ALL[::2], capacity) for engine in ("native", "numpy"))
    assert lab.different(one.state, other.state) == []
    assert one.state.n_spans.min() > 7


@pytest.mark.parametrize("engine", ENGINES)
def test_recording_changes_nothing(engine: str) -> None:
    assert run(engine, []).trace_hash() == run(engine, ALL).trace_hash()


def test_what_finds_no_room_is_counted() -> None:
    full, short = (
        run(ENGINES[0], [(1, 2), (0, 0)]).recorded(),
        run(ENGINES[0], [(1, 2), (0, 0)], 5).recorded(),
    )
    assert [(spans.x, spans.y) for spans in short] == [(1, 2), (0, 0)]
    for whole, part in zip(full, short, strict=True):
        np.testing.assert_array_equal(part.rows, whole.rows[:5])
        assert part.n_lost >= len(whole.rows) - 5, "what is lost is not joined"


@pytest.mark.parametrize("pes", [[(4, 0)], [(0, -1)], [(1, 1), (1, 1)]])
def test_unknown_and_repeated_pes_are_refused(pes: list[tuple[int, int]]) -> None:
    with pytest.raises(ProgramError, match="distinct and inside 4 x 3"):
        Machine(lab.busy_program(), engine="numpy").record(pes)
    with pytest.raises(ProgramError, match="no room"):
        Machine(lab.busy_program(), engine="numpy").record([(0, 0)], capacity=0)
