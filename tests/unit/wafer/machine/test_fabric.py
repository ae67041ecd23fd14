"""The fabric: a wavelet per link and cycle, credits, data tasks; state as arrays for a mesh of any size."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest

from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.timing import Timing

ENGINES = ["numpy"] if native.available() else ["numpy", "native"]


def streams(n_colors: int, n: int, **timing: int) -> Program:
    """PE 0 sends n wavelets to PE 2 on each of n_colors, a microthread each; all share the two links."""
    program = Program(3, 1, timing=Timing(**timing))
    sender, receiver = program.role("sender", (0, 0)), program.role("receiver", (2, 0))
    colors = [program.color(f"color {i}") for i in range(n_colors)]
    for color in colors:
        program.route(color, (0, 0), ("R", "E"))
        program.route(color, (1, 0), ("W", "E"))
        program.route(color, (2, 0), ("W", "R"))
    for code, is_sender in ((sender, True), (receiver, False)):
        arrays = [code.array(f"x{i}", n) for i in range(n_colors)]
        with code.task("main"):
            for thread, (color, array) in enumerate(zip(colors, arrays, strict=True), start=1):
                if is_sender:
                    code.mov(code.send(color, n), array, thread=thread)
                else:
                    code.mov(array, code.recv(color, n), thread=thread)
            for thread in range(1, n_colors + 1):
                code.wait(thread)
            code.done()
    return program


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_colors", [1, 2, 3])
def test_a_link_carries_a_wavelet_a_cycle_whatever_the_colors(n_colors: int, engine: str) -> None:
    """And so does a core: n wavelets on each of k colors take k n cycles, and the way."""
    n = 60
    machine = Machine(streams(n_colors, n), engine=engine, check=True)
    values = np.random.default_rng(0).standard_normal((1, 3, n)).astype(np.float32)
    for i in range(n_colors):
        machine.memcpy_h2d(f"x{i}", values + i)
    cycles = machine.launch("main").cycles
    way = (
        2 + 2 + 2 * machine.image.timing.ramp_cycles
    )  # two hops, two ramps, the first and the last task step
    assert n_colors * n + way <= cycles <= n_colors * n + way + 4 * n_colors + 4
    for i in range(n_colors):
        assert (machine.memcpy_d2h(f"x{i}")[0, 2] == (values + i)[0, 0]).all()
    east = machine.state.link_wavelets[:, 1]
    assert east.tolist() == [n_colors * n, n_colors * n, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_without_credit_nothing_moves_and_nothing_is_lost(engine: str) -> None:
    """Queues of one wavelet fill up and wait for each other; all arrives all the same, later."""
    n = 20
    program = streams(1, n, link_depth=1, core_depth=2, up_depth=2)
    machine = Machine(program, engine=engine, check=True)
    values = np.arange(3 * n, dtype=np.float32).reshape(1, 3, n)
    machine.memcpy_h2d("x0", values)
    shallow = machine.launch("main").cycles
    assert (machine.memcpy_d2h("x0")[0, 2] == values[0, 0]).all()
    assert shallow > Machine(streams(1, n), engine=engine).launch("main").cycles


@pytest.mark.parametrize("engine", ENGINES)
def test_a_data_task_runs_once_per_wavelet_with_its_value(engine: str) -> None:
    """The receiver sums squares of what arrives and is done after the last; it is never activated."""
    program, n = Program(2, 1), 9
    color = program.color("data")
    program.route(color, (0, 0), ("R", "E"))
    program.route(color, (1, 0), ("W", "R"))
    sender, receiver = program.role("sender", (0, 0)), program.role("receiver", (1, 0))
    x = sender.array("x", n, "i32")
    with sender.task("main"):
        sender.mov(sender.send(color, n, "i32"), x)
        sender.done()
    total, count = receiver.array("total", 1, "i32"), receiver.array("count", 1, "i32")
    with receiver.task("main"):
        pass
    with receiver.task("arrived", color=color), receiver.regs(2) as (so_far, seen):
        value = receiver.argument
        receiver.imul(value, value, value)
        receiver.load(so_far, total)
        receiver.iadd(so_far, so_far, value)
        receiver.store(total, so_far)
        receiver.load(seen, count)
        receiver.iadd(seen, seen, 1)
        receiver.store(count, seen)
        with receiver.if_(seen, "==", n):
            receiver.done()
    machine = Machine(program, engine=engine, check=True)
    machine.memcpy_h2d("x", np.arange(1, n + 1).reshape(1, 1, n) * np.ones((1, 2, 1), np.int32))
    machine.launch("main")
    assert machine.memcpy_d2h("total")[0, 1, 0] == sum(i * i for i in range(1, n + 1))
    assert machine.memcpy_d2h("count")[0, 1, 0] == n


@pytest.mark.parametrize("engine", ENGINES)
def test_a_microthread_runs_while_the_main_thread_goes_on(engine: str) -> None:
    """A receive that waits leaves the core to the main thread, whose work the waiting hides."""

    def cycles(thread: int | None) -> int:
        program = Program(2, 1)
        color = program.color("late")
        program.route(color, (0, 0), ("R", "E"))
        program.route(color, (1, 0), ("W", "R"))
        late, busy = program.role("late", (0, 0)), program.role("busy", (1, 0))
        x, y, z = late.array("x", 8), busy.array("y", 8), busy.array("z", 100)
        with late.task("main"):
            late.delay(100)
            late.mov(late.send(color, 8), x)
            late.done()
        with busy.task("main"):
            if thread is None:
                busy.mov(y, busy.recv(color, 8))
                busy.add(z, z, 1.0)
            else:
                busy.mov(y, busy.recv(color, 8), thread=thread)
                busy.add(z, z, 1.0)
                busy.wait(thread)
            busy.done()
        return Machine(program, engine=engine, check=True).launch("main").cycles

    in_turn, at_once = cycles(None), cycles(1)
    assert in_turn - at_once >= 90


def _python_calls(width: int, height: int, engine: str) -> int:
    """Functions of Python and C that building, loading, running and reading a mesh calls."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        program = Program(width, height)
        east = program.color("east")
        program.route(east, (slice(0, None, 2), slice(None)), ("R", "E"))
        program.route(east, (slice(1, None, 2), slice(None)), ("W", "R"))
        for name, start in (("even", 0), ("odd", 1)):
            code = program.role(name, (slice(start, None, 2), slice(None)))
            x = code.array("x", 16)
            with code.task("main"):
                if start == 0:
                    code.mov(code.send(east, 16), x)
                else:
                    code.fmac(x, code.recv(east, 16), 2.0, x)
                code.apply("exp", x, x)
                code.done()
        machine = Machine(program, engine=engine)
        machine.memcpy_h2d("x", np.zeros((height, width, 16), np.float32))
        machine.launch("main")
        machine.memcpy_d2h("x")
        machine.trace_hash()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("engine", ENGINES)
def test_python_does_the_same_work_for_any_number_of_pes(engine: str) -> None:
    """A loop over PEs anywhere would add calls with the mesh: 4 and 1,024 PEs take as many, to the call."""
    _python_calls(2, 2, engine)  # what is done once per process
    assert _python_calls(32, 32, engine) == _python_calls(2, 2, engine)
