"""What a newcomer gets wrong when writing a program is an error at once, with the name of what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.scalar_code import bits_of


def _outside(code: Code) -> None:
    code.mov(code.array("x", 4), 1.0)


def _nested(code: Code) -> None:
    with code.task("first"), code.task("second"):
        pass


def _too_short(code: Code) -> None:
    x, y = code.array("x", 4), code.array("y", 3)
    with code.task("main"):
        code.add(x, x, y)


def _list_as_operand(code: Code) -> None:
    x = code.array("x", 2)
    with code.task("main"):
        code.mov(x, [1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_outside, r"role 'all': an instruction outside of `with code.task"),
        (_nested, "task 'second' is written within task 'first'"),
        (_too_short, "'y' has 3 elements, 'x' takes 4"),
        (_list_as_operand, r"neither an operand nor a number of 32 bits: \[1, 2\]"),
    ],
)
def test_a_mistake_in_the_code_is_named(write: object, message: str) -> None:
    assert callable(write)
    with pytest.raises(ProgramError, match=message):
        write(Program(1, 1).role("all"))


def test_a_longer_source_and_a_task_after_a_task_are_fine() -> None:
    program = Program(1, 1)
    code = program.role("all")
    x, y = code.array("x", 2), code.array("y", 3)
    for name in ("first", "second"):
        with code.task(name):
            code.add(x, x, y)
            code.done()
    machine = Machine(program, engine="numpy")
    machine.memcpy_h2d("y", [1, 2, 3])
    machine.launch("first")
    machine.launch("second")
    assert machine.memcpy_d2h("x").tolist() == [[[2.0, 4.0]]]


def test_numpys_integers_are_integers() -> None:
    assert bits_of(np.int64(3)) == bits_of(3) == 3
    assert bits_of(np.float32(1.0)) == bits_of(1.0) == 0x3F800000
    with pytest.raises(ProgramError, match="does not fit 32 bits"):
        bits_of(np.uint64(2**33))
    with pytest.raises(ProgramError, match="1e\\+300"):
        bits_of(1e300)


def test_names_that_are_not_there_come_with_those_that_are() -> None:
    program = Program(1, 1)
    code = program.role("all")
    code.array("x", 1)
    with code.task("main"):
        code.done()
    machine = Machine(program, engine="numpy")
    with pytest.raises(ProgramError, match="no role has an array 'y'; there are: x"):
        machine.memcpy_h2d("y", 1)
    with pytest.raises(ProgramError, match="no role has a local task 'go'; there are: main"):
        machine.launch("go")
