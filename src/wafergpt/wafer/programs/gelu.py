"""GELU on every PE's part of a vector: exact (erf) or GPT-2's tanh form."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.operands import Array, Dsd
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine

FORMS = ("erf", "tanh")


def emit_gelu(code: Code, x: Array | Dsd, scratch: Array | Dsd, form: str) -> None:
    """x = GELU(x); `scratch` of the same length is used by the form "erf", x (1 + erf(x / sqrt 2)) / 2."""
    if form not in FORMS:
        raise ProgramError(f"unknown form of GELU '{form}': {', '.join(FORMS)}")
    if form == "tanh":
        code.apply("gelu", x, x)
        return
    code.mul(scratch, x, math.sqrt(0.5))
    code.apply("erf", scratch, scratch)
    code.mul(x, x, 0.5)
    code.fmac(x, x, scratch, x)


def gelu(x: NDArray[np.float32], *, form: str = "erf", engine: str = "auto") -> NDArray[np.float32]:
    """GELU of x [height, width, n] on a mesh of width x height PEs."""
    height, width, n = x.shape
    program = Program(width, height)
    code = program.role("worker")
    values, scratch = code.array("x", n), code.array("scratch", n)
    with code.task("main"):
        emit_gelu(code, values, scratch, form)
        code.done()
    machine = Machine(program, engine=engine)
    machine.memcpy_h2d("x", x)
    machine.launch("main")
    return machine.memcpy_d2h("x")
