"""A simulated run as files: the timeline is well formed and accounts for every cycle; the report adds up."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from wafergpt.errors import ConfigError
from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.isa import RAMP
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.plots.pages import save_html, simulation_files
from wafergpt.wafer.report import Report
from wafergpt.wafer.simulation import EDGE, Simulation, simulate
from wafergpt.wafer.timeline import CORE, PHASES, TASKS, busy_cycles, timeline

pytestmark = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")
Event = dict[str, Any]


@pytest.fixture(scope="module")
def run() -> Simulation:
    return simulate(b"ab", 2)


@pytest.fixture(scope="module")
def files(run: Simulation) -> dict[str, bytes]:
    return simulation_files(run)


@pytest.fixture(scope="module")
def events(files: dict[str, bytes]) -> list[Event]:
    tree = json.loads(files["trace.json"])
    assert tree["otherData"]["lost_spans"] == "0"
    found: list[Event] = tree["traceEvents"]
    return found


def of_row(events: list[Event], process: int, row: int) -> list[Event]:
    return [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (process, row)]


def test_trace_events_are_as_the_format_wants_them(events: list[Event]) -> None:
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) + sum(event["ph"] == "M" for event in events) == len(events)
    assert [event["ts"] for event in spans] == sorted(event["ts"] for event in spans)
    for event in spans:
        assert set(event) == {"ph", "name", "cat", "pid", "tid", "ts", "dur"}
        assert isinstance(event["ts"], int) and isinstance(event["dur"], int) and event["dur"] > 0
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in spans} == set(names)


def test_rows_do_not_overlap(events: list[Event]) -> None:
    for process in range(10):
        for row in (TASKS, PHASES, CORE) if process else (0,):
            spans = of_row(events, process, row)
            assert spans
            for before, after in itertools.pairwise(spans):
                assert before["ts"] + before["dur"] <= after["ts"]


def test_busy_cycles_are_the_machines(run: Simulation, events: list[Event]) -> None:
    """And busy, stalled and idle cycles together are the time from the first to the last."""
    shown = busy_cycles(events)
    assert len(shown) == len(run.recorded) == 9
    for process, of_pe in enumerate(run.recorded, 1):
        assert shown[process] == (of_pe.rows[:, 1] - of_pe.rows[:, 0]).sum()
        core = of_row(events, process, CORE)
        assert sum(e["dur"] for e in core) == core[-1]["ts"] + core[-1]["dur"] - core[0]["ts"]
        assert {e["cat"] for e in core} <= {"busy", "stall", "idle"}


def test_a_gap_outside_of_a_task_is_idle() -> None:
    """Two launches of a program: what lies between them is no stall."""
    import wafer_lab as lab

    machine = lab.load(Machine(lab.busy_program(), engine="native"))
    machine.record([(0, 0)])
    for _ in range(2):
        machine.launch("main")
    events = json.loads(timeline(machine.image, machine.recorded(), name="x"))["traceEvents"]
    assert busy_cycles(events) == {1: int(machine.state.busy_cycles[0])}
    assert {e["cat"] for e in of_row(events, 1, CORE)} == {"busy", "stall", "idle"}
    for gap in of_row(events, 1, CORE):
        inside = any(
            task["ts"] <= gap["ts"] and gap["ts"] + gap["dur"] <= task["ts"] + task["dur"]
            for task in of_row(events, 1, TASKS)
        )
        assert inside or gap["cat"] != "stall"
        assert not inside or gap["cat"] != "idle"
    tasks = [e["name"] for e in of_row(events, 1, TASKS)]
    assert tasks.count("main") == 2 and tasks.count("finish") == 2
    assert of_row(events, 1, PHASES) == [], "this program names no phases"


def test_what_was_lost_is_said() -> None:
    import wafer_lab as lab

    machine = lab.load(Machine(lab.busy_program(), engine="native"))
    machine.record([(0, 0)], capacity=3)
    machine.launch("main")
    tree = json.loads(timeline(machine.image, machine.recorded(), name="x"))
    n_lost = machine.recorded()[0].n_lost
    assert n_lost > 0 and tree["otherData"]["lost_spans"] == str(n_lost)
    assert any(f"{n_lost} spans lost" in e["args"]["name"] for e in tree["traceEvents"] if e["ph"] == "M")


def test_phases_are_the_models(run: Simulation, events: list[Event]) -> None:
    names = {e["name"] for e in of_row(events, 1, PHASES)}
    assert names == {"embedding", "attention", "layer norm", "ffn", "head"}
    steps = of_row(events, 0, 0)
    assert [e["dur"] for e in steps] == list(run.generated.token_cycles)
    assert steps[0]["ts"] == run.marks[0][1]


def test_the_report_adds_up(run: Simulation) -> None:
    report = run.report
    assert sum(report.breakdown_cycles.values()) == pytest.approx(report.cycles)
    assert report.cycles == run.generated.cycles and report.fidelity == "cycle"
    assert report.tokens_per_s == pytest.approx(3 / report.modelled_s)
    assert run.links[..., :RAMP].sum() == run.generated.wavelets
    used = sum(part for part in run.memory.values())
    assert used.max() == report.sram_bytes_per_pe["largest"]
    assert 0 < report.share_of_peak < 1
    d, f, v = 64, 256, 256
    flops = 2 * (2 * (3 * (4 * d * d + 2 * d * f) + 2 * (1 + 2 + 3) * d) + 2 * v * d)
    assert report.share_of_peak == pytest.approx(flops / (report.modelled_s * EDGE**2 * 8 * 1.1e9))


def test_files_are_complete(run: Simulation, files: dict[str, bytes]) -> None:
    assert set(files) == {"report.html", "report.json", "trace.json"} | {
        f"{name}.png" for name in ("links", "memory", "tiles", "cores")
    }
    assert all(data.startswith(b"\x89PNG") for name, data in files.items() if name.endswith(".png"))
    assert Report.from_json(files["report.json"].decode()) == run.report
    assert files["report.html"].count(b"data:image/png;base64,") == 4


def test_a_report_is_saved_as_html(run: Simulation, tmp_path: Any) -> None:
    save_html(run.report, tmp_path / "new" / "run.html")
    assert "tiny GPT" in (tmp_path / "new" / "run.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("prompt", "n_new"), [(b"", 3), (b"a", 0), (b"a" * 60, 6)])
def test_what_does_not_fit_is_refused(prompt: bytes, n_new: int) -> None:
    with pytest.raises(ConfigError, match=r"empty|together"):
        simulate(prompt, n_new)
