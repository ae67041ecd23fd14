"""Softmax of a vector spread over a row of PEs: maximum and sum by all-reduce, exponentials locally."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.operands import Array, Dsd, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.allreduce import AllReduce

LOWEST = float(np.finfo(np.float32).min)  # below every score


class Softmax:
    """Softmaxes along the lines of `line`."""

    def __init__(self, code: Code, line: AllReduce) -> None:
        self._code, self._line = code, line
        self._lane = line.lane(1)
        self._scalar = code.array("softmax scalar", 1)

    def exponentials(self, total: Reg, scores: Array | Dsd) -> None:
        """scores = exp(scores - the line's maximum); `total` = their sum in this PE. A PE's part may be
        empty, a line may not."""
        code = self._code
        code.li(total, LOWEST)
        code.top(total, scores)
        self._all(total, Alu.MAX)
        code.sub(scores, scores, total)
        code.apply("exp", scores, scores)
        code.li(total, 0.0)
        code.sum(total, scores)

    def emit(self, scores: Array | Dsd) -> None:
        """scores = softmax(scores)."""
        code = self._code
        with code.regs(1) as (total,):
            self.exponentials(total, scores)
            self._all(total, Alu.ADD)
            code.div(total, 1.0, total)
            code.mul(scores, scores, total)

    def _all(self, register: Reg, operation: Alu) -> None:
        self._code.store(self._scalar, register)
        self._line.emit(self._scalar, self._lane, operation)
        self._code.load(register, self._scalar)


def softmax(x: NDArray[np.float32], *, width: int, engine: str = "auto") -> NDArray[np.float32]:
    """Softmax of every row of x [rows, n] on a mesh of `width` x rows PEs."""
    rows, n = x.shape
    program = Program(width, rows)
    code = program.role("worker")
    scores = code.array("x", n // width)
    line = AllReduce(program, code, "x", "row")
    function = Softmax(code, line)
    with code.task("main"):
        line.prepare()
        function.emit(scores)
        code.done()
    machine = Machine(program, engine=engine)
    line.load(machine)
    machine.memcpy_h2d("x", x.reshape(rows, width, n // width))
    machine.launch("main")
    return machine.memcpy_d2h("x").reshape(rows, n)
