"""A run of the cycle simulator as a timeline: Chrome trace events, which ui.perfetto.dev opens.

One microsecond on the screen is one cycle. Every recorded PE is a process with three rows: its tasks, the
phases of the program, and what the core does: busy (launch, scalar, a vector operation's name, end), stalled
(in a task, but it waits) or idle (no task).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.spans import END, PC, START, SpanKind, Spans

Event = dict[str, Any]
TASKS, PHASES, CORE = range(3)
_ROWS = ("tasks", "phases", "core")


def timeline(
    image: Image, recorded: Sequence[Spans], *, name: str, marks: Sequence[tuple[str, int, int]] = ()
) -> str:
    """The JSON text. `marks`: (name, first cycle, cycle after the last) of the whole run, e.g. its tokens."""
    events = [_named("process_name", name, 0), _named("thread_name", "run", 0)]
    spans: list[Event] = [_span(0, 0, mark, start, end, "run") for mark, start, end in marks]
    for number, of_pe in enumerate(recorded, 1):
        lost = f", {of_pe.n_lost} spans lost" if of_pe.n_lost else ""
        role = image.role_names[image.role[of_pe.y * image.width + of_pe.x]]
        events.append(_named("process_name", f"PE ({of_pe.x}, {of_pe.y}) {role}{lost}", number))
        events += [_named("thread_name", row, number, place) for place, row in enumerate(_ROWS)]
        spans += _core(image, of_pe, number)
        spans += _tasks(image, of_pe, number)
        spans += [_span(number, PHASES, *phase, "phase") for phase in phases(image, of_pe)]
    spans.sort(key=lambda event: (event["ts"], -event["dur"]))
    said = {"fidelity": "modelled, cycle simulator", "unit": "1 us shown is 1 cycle", "name": name}
    said["lost_spans"] = str(sum(of_pe.n_lost for of_pe in recorded))
    tree = {"traceEvents": events + spans, "displayTimeUnit": "ns", "otherData": said}
    return json.dumps(tree, separators=(",", ":")) + "\n"


def _named(what: str, name: str, process: int, thread: int = 0) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _span(process: int, thread: int, name: str, start: int, end: int, category: str) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": process,
        "tid": thread,
        "ts": start,
        "dur": end - start,
    }


def _task_name(image: Image, of_pe: Spans, task: int) -> str:
    names = image.task_names[image.role[of_pe.y * image.width + of_pe.x]]
    return next((name for name, index in names.items() if index == task), str(task))


def _core(image: Image, of_pe: Spans, process: int) -> Iterator[Event]:
    """Busy spans as they were recorded, and what lies between them."""
    is_in_task, before = False, None
    for row, kind, detail in zip(of_pe.rows.tolist(), of_pe.kinds, of_pe.details, strict=True):
        start, end = row[START], row[END]
        if before is not None and start > before:
            gap = "stall" if is_in_task else "idle"
            yield _span(process, CORE, gap, before, start, gap)
        if kind == SpanKind.LAUNCH:
            name, is_in_task = f"launch {_task_name(image, of_pe, detail)}", True
        elif kind == SpanKind.STEP:
            name = Alu(detail).name.lower()
        else:
            name = "scalar" if kind == SpanKind.SCALAR else "end"
            is_in_task = is_in_task and kind != SpanKind.END
        yield _span(process, CORE, name, start, end, "busy")
        before = end


def _tasks(image: Image, of_pe: Spans, process: int) -> Iterator[Event]:
    """From a task's launch to its end, or to the last span."""
    began: tuple[str, int] | None = None
    for row, kind, detail in zip(of_pe.rows.tolist(), of_pe.kinds, of_pe.details, strict=True):
        if kind == SpanKind.LAUNCH:
            began = (_task_name(image, of_pe, detail), row[START])
        elif kind == SpanKind.END and began:
            yield _span(process, TASKS, *began, row[END], "task")
            began = None
    if began:
        yield _span(process, TASKS, *began, int(of_pe.rows[-1, END]), "task")


def phases(image: Image, of_pe: Spans) -> Iterator[tuple[str, int, int]]:
    """Runs of instructions of one phase with no other between: name, first cycle, cycle after the last."""
    now: tuple[str, int, int] | None = None
    for row in of_pe.rows.tolist():
        phase = image.phases[row[PC]] if row[PC] < len(image.phases) else ""
        if now and phase == now[0]:
            now = (phase, now[1], row[END])
            continue
        if now and now[0]:
            yield now
        now = (phase, row[START], row[END])
    if now and now[0]:
        yield now


def busy_cycles(events: Sequence[Event]) -> dict[int, int]:
    """Process -> its core's busy cycles, from a timeline's events."""
    totals: dict[int, int] = {}
    for event in events:
        if event["ph"] == "X" and event["cat"] == "busy":
            totals[event["pid"]] = totals.get(event["pid"], 0) + event["dur"]
    return totals
