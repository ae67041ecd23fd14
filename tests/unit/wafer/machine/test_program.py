"""What a program may not do is named; what it does costs the cycles that are stated."""

from __future__ import annotations

import re

import numpy as np
import pytest

import wafer_lab as lab
from wafergpt.wafer.machine import isa, native
from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import (
    DeadlockError,
    MemoryFaultError,
    OperandError,
    ProgramError,
    RouteError,
    RunAwayError,
    SramOverflowError,
    UnknownOperationError,
)
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.timing import Timing

ENGINES = ["numpy"] if native.available() else ["numpy", "native"]


def one_pe() -> tuple[Program, Code]:
    """A mesh of one PE and its role."""
    program = Program(1, 1)
    return program, program.role("worker")


def cycles_of(write: object, engine: str) -> int:
    """Cycles of what `write(code)` emits, between two reads of the counter."""
    program, code = one_pe()
    body = write(code)  # type: ignore[operator]
    start, end = code.array("start", 2, "i32"), code.array("end", 2, "i32")
    with code.task("main"):
        low = code.pair()
        code.counter(low[0])
        code.store(start, low[0])
        body()
        code.counter(low[0])
        code.store(end, low[0])
        code.done()
    machine = Machine(program, engine=engine)
    machine.launch("main")
    return int((machine.memcpy_d2h("end") - machine.memcpy_d2h("start"))[0, 0, 0]) - 2


@pytest.mark.parametrize("engine", ENGINES)
def test_vector_instructions_cost_what_is_published(engine: str) -> None:
    """float16 4 per cycle, mixed 2, float32 1; one cycle more per step where two sources share a bank."""

    def fmac(type_a: str, type_y: str, bank: int) -> object:
        def write(code: Code) -> object:
            a, y = code.array("a", 64, type_a, bank=0), code.array("y", 64, type_y, bank=bank)
            return lambda: code.fmac(y, a, code.argument, y)

        return write

    assert cycles_of(fmac("f32", "f32", 2), engine) == 64
    assert cycles_of(fmac("f32", "f32", 0), engine) == 128
    assert cycles_of(fmac("f16", "f16", 2), engine) == 16
    assert cycles_of(fmac("f16", "f16", 0), engine) == 32
    assert cycles_of(fmac("f16", "f16", 1), engine) == 32

    def dot(code: Code) -> object:
        a, b = code.array("a", 64, "f16", bank=0), code.array("b", 64, "f16", bank=2)
        return lambda: code.dot(code.argument, a, b)

    assert cycles_of(dot, engine) == 32


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loop_costs_two_cycles_a_round_and_a_function_its_assumed_cycles(engine: str) -> None:
    def loop(code: Code) -> object:
        def body() -> None:
            with code.loop(10):
                pass

        return body

    assert cycles_of(loop, engine) == 2 + 2 * 10

    def function(code: Code) -> object:
        x = code.array("x", 5)
        return lambda: code.apply("exp", x, x)

    assert cycles_of(function, engine) == 5 * Timing().function_cycles[isa.Alu.EXP]


def test_sram_overflow_names_the_role_and_the_parts() -> None:
    program, code = one_pe()
    code.array("x", 12_000)
    with code.task("main"):
        code.done()
    program.build()
    code.array("y", 300)
    with pytest.raises(SramOverflowError, match=r"role 'worker' needs \d+ bytes of SRAM, a PE has 49152"):
        program.build()


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([((0, 0), ("R", "E"))], "no sink"),
        ([((1, 0), ("R", "E"))], "no sink"),
        ([((0, 0), ("R", "E")), ((1, 0), ("W", ""))], "sends them nowhere"),
        ([((0, 0), ("R", "R"))], "back where they came from"),
        ([((0, 0), ("R", "Q"))], "unknown port 'Q'"),
    ],
)
def test_a_route_without_a_sink_is_refused_before_the_run(routes: list, message: str) -> None:
    program = Program(2, 1)
    color = program.color("lost")
    with pytest.raises(RouteError, match=message):
        for at, position in routes:
            program.route(color, at, position)
        program.build()


@pytest.mark.parametrize("engine", ENGINES)
def test_deadlock_lists_every_blocked_pe_and_what_it_waits_for(engine: str) -> None:
    program = Program(3, 1)
    color, other = program.color("never"), program.color("full")
    program.route(color, (0, 0), ("E", "R"))
    program.route(color, (1, 0), ("R", "W"))
    program.route(other, (1, 0), ("R", "E"))
    program.route(other, (2, 0), ("W", "R"))
    roles = [program.role(name, (x, 0)) for x, name in enumerate(("hears", "sends", "sleeps"))]
    x, y = roles[0].array("x", 4), roles[1].array("y", 64)
    with roles[0].task("main"):
        roles[0].mov(x, roles[0].recv(color, 4), thread=1)
        roles[0].wait(1)
        roles[0].done()
    with roles[1].task("main"):
        roles[1].mov(roles[1].send(other, 64), y)
        roles[1].done()
    with roles[2].task("main"):
        pass
    with pytest.raises(DeadlockError) as caught:
        Machine(program, engine=engine).launch("main")
    blocked = caught.value.blocked
    assert set(blocked) == {(0, 0), (1, 0), (2, 0)}
    assert "waits to receive on color 'never'" in blocked[0, 0]
    assert "waits for credit to send on color 'full'" in blocked[1, 0]
    assert "did not reach `done`" in blocked[2, 0]
    assert "PE (0, 0) (hears)" in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_stops_a_run_is_named(engine: str) -> None:
    def run(write: object) -> None:
        program, code = one_pe()
        unrouted = program.color("unrouted")
        x = code.array("x", 4)
        with code.task("main"):
            write(code, x, unrouted)  # type: ignore[operator]
            code.done()
        Machine(program, engine=engine).launch("main", max_cycles=500)

    def forever(code: Code, x: object, color: object) -> None:
        code.li(code.argument, 1)
        with code.while_(code.argument, "==", 1):
            pass

    with pytest.raises(RunAwayError, match="not done after 500 cycles"):
        run(forever)
    with pytest.raises(
        MemoryFaultError,
        match=r"PE \(0, 0\), role 'worker', instruction 2, cycle 3: byte address 400",
    ):
        run(lambda code, x, color: (code.li(code.argument, 100), code.load(code.argument, x, code.argument)))
    with pytest.raises(RouteError, match="the ramp has no route for color 'unrouted'"):
        run(lambda code, x, color: code.mov(x, code.recv(color, 4)))
    with pytest.raises(OperandError, match="kinds and types"):
        run(lambda code, x, color: code.mov(x, code.view(code.array("w", 4, "i32"))))


def test_words_that_no_engine_knows_are_refused_before_the_run() -> None:
    image = lab.busy_program().build()
    for place, value in ((isa.Word.OP, 99), (isa.Word.MODE, -1), (isa.Word.DST, 16), (isa.Word.A, 77)):
        code = image.code.copy()
        row = int(np.flatnonzero(code[:, isa.Word.OP] == isa.Op.IALU)[0])
        code[row, place] = value
        with pytest.raises(UnknownOperationError, match=rf"instruction {row}"):
            Machine(lab.dataclasses.replace(image, code=code))


def test_mistakes_in_a_program_are_named() -> None:
    program, code = one_pe()
    x = code.array("x", 4)
    for mistake, message in (
        (lambda: program.role("again"), "have a role already"),
        (lambda: code.array("x", 3), "has an array 'x' already"),
        (lambda: code.array("z", 3, "f64"), "unknown element type 'f64'"),
        (lambda: code.load(code.argument, x, 4), "outside array 'x' of 4"),
        (lambda: code.apply("sin", x, x), "unknown function 'sin'"),
        (lambda: code.mov(x, x, thread=9), "no microthread 9"),
        (lambda: [code.reg() for _ in range(14)], "more than 13 registers"),
        (lambda: program.region((1, 0)), "outside the 1 x 1 mesh"),
        (lambda: Machine(program, order=[1]), "name every PE once"),
        (lambda: Machine(program, engine="fast"), "unknown engine 'fast'"),
        (lambda: Machine(program).launch("main"), "no role has a local task 'main'"),
        (
            lambda: Machine(program).memcpy_h2d("x", np.zeros((2, 2, 4))),
            re.escape("'x' is [1, 1, 4], not [2, 2, 4]"),
        ),
    ):
        with pytest.raises(ProgramError, match=message):
            mistake()


def test_host_copies_are_charged_apart_and_reach_all_roles() -> None:
    program = Program(2, 1)
    for x in range(2):
        code = program.role(f"role {x}", (x, 0))
        code.array("pad", 1 + x)
        code.array("v", 3, "f16")
    machine = Machine(program)
    values = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
    machine.memcpy_h2d("v", values)
    np.testing.assert_array_equal(machine.memcpy_d2h("v"), values)
    assert machine.io_cycles == 4 * (machine.image.timing.io_latency_cycles + 1)
    assert machine.state.clock[0] == 0


def test_numbers_that_an_array_cannot_hold_are_refused() -> None:
    program, code = one_pe()
    code.array("whole", 2, "i32")
    code.array("half", 1, "f16")
    machine = Machine(program)
    for values, message in (
        ([1.0, 2.5], "'whole' holds int32, and 2.5 is none"),
        ([1, 2**31], "'whole' holds int32, and 2.14748e\\+09 is none"),
        ([1.0, np.nan], "and nan is none"),
        (["a", "b"], "'whole' takes numbers, not"),
        ([1j, 2], "'whole' takes numbers, not complex128"),
    ):
        with pytest.raises(ProgramError, match=message):
            machine.memcpy_h2d("whole", np.array([[values]]))
    machine.memcpy_h2d("whole", [[[3.0, -(2.0**31)]]])
    assert machine.memcpy_d2h("whole").tolist() == [[[3, -(2**31)]]]
    machine.memcpy_h2d("half", 1e6)  # rounds as float16 does
    assert machine.memcpy_d2h("half")[0, 0, 0] == np.inf
