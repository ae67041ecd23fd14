"""LayerNorm of a vector that is spread over a row of PEs: y = (x - mean) / sqrt(variance + eps) gain + bias.

Two all-reduces of one element: the sum, and the sum of squared differences from the mean (float32).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.operands import Array, Dsd, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.allreduce import AllReduce


class LayerNorm:
    """LayerNorms of vectors of `length` elements per PE along the lines of `line`."""

    def __init__(self, code: Code, line: AllReduce, length: int, eps: float) -> None:
        self._code, self._line, self._eps = code, line, eps
        self._n = length * line.size
        self._lane = line.lane(1)
        self._scalar = code.array("layer norm sum", 1)

    def emit(self, y: Array, x: Array, gain: Array | Dsd, bias: Array | Dsd) -> None:
        """y = LayerNorm(x), all of the PE's part; y is not x."""
        code = self._code
        with code.regs(1) as (total,):
            code.li(total, 0.0)
            code.sum(total, x)
            self._sum(total, 1.0 / self._n)
            code.sub(y, x, total)
            code.li(total, 0.0)
            code.dot(total, y, y)
            self._sum(total, 1.0 / self._n)
            code.add(total, total, self._eps)
            code.apply("rsqrt", total, total)
            code.mul(y, y, total)
            code.fmac(y, y, gain, bias)

    def _sum(self, register: Reg, factor: float) -> None:
        """register = factor * its sum over the line."""
        code, scalar = self._code, self._scalar
        code.store(scalar, register)
        self._line.emit(scalar, self._lane)
        code.load(register, scalar)
        code.mul(register, register, factor)


def layer_norm(
    x: NDArray[np.float32],
    gain: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    width: int,
    eps: float = 1e-5,
    engine: str = "auto",
) -> NDArray[np.float32]:
    """LayerNorm of every row of x [rows, n] on a mesh of `width` x rows PEs; gain and bias [n]."""
    rows, n = x.shape
    program = Program(width, rows)
    code = program.role("worker")
    part = n // width
    arrays = {name: code.array(name, part) for name in ("x", "gain", "bias", "y")}
    line = AllReduce(program, code, "x", "row")
    norm = LayerNorm(code, line, part, eps)
    with code.task("main"):
        line.prepare()
        norm.emit(arrays["y"], arrays["x"], arrays["gain"], arrays["bias"])
        code.done()
    machine = Machine(program, engine=engine)
    line.load(machine)
    machine.memcpy_h2d("x", x.reshape(rows, width, part))
    machine.memcpy_h2d("gain", gain.reshape(1, width, part))
    machine.memcpy_h2d("bias", bias.reshape(1, width, part))
    machine.launch("main")
    return machine.memcpy_d2h("y").reshape(rows, n)
