"""Programs for the wafer machine's tests: one that uses every part of it, its mutants, every function."""

from __future__ import annotations

import dataclasses
from dataclasses import fields

import numpy as np

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import CONTROL_ADVANCE, CONTROL_RESET_ALL, Alu
from wafergpt.wafer.machine.operands import Array, Color
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.state import State
from wafergpt.wafer.machine.timing import Timing

WIDTH, HEIGHT = 4, 3


def busy_program() -> Program:
    """A 4 x 3 mesh: a row broadcast whose sender changes (switches, control wavelets), control tasks, float16
    chains up the columns on microthreads, reductions, functions, integer and float scalars, loops."""
    program = Program(WIDTH, HEIGHT, timing=Timing(task_launch_cycles=3))
    turn, even, odd = program.color("turn"), program.color("even"), program.color("odd")
    program.route(turn, (0, slice(None)), ("R", "E"), ("E", "R"))
    program.route(turn, (slice(1, 3), slice(None)), ("W", "RE"), ("R", "WE"), ("E", "WR"))
    program.route(turn, (3, slice(None)), ("W", "R"), ("R", "W"))
    bell = program.color("bell")
    program.route(bell, (0, slice(None)), ("R", "E"))
    program.route(bell, (slice(1, 3), slice(None)), ("W", "RE"))
    program.route(bell, (3, slice(None)), ("W", "R"))
    for y in range(HEIGHT):
        sends, hears = (even, odd) if y % 2 == 0 else (odd, even)
        if y > 0:
            program.route(sends, (slice(None), y), ("R", "N"))
        if y < HEIGHT - 1:
            program.route(hears, (slice(None), y), ("S", "R"))
    for y, name in enumerate(("top", "middle", "bottom")):
        _row(program, (name, y), (turn, bell), (even, odd) if y % 2 == 0 else (odd, even))
    return program


def _row(
    program: Program, row: tuple[str, int], along: tuple[Color, Color], colors: tuple[Color, Color]
) -> None:
    (name, y), (turn, bell), (sends, hears) = row, along, colors
    code = program.role(name, (slice(None), y))
    x, h = code.array("x", 6), code.array("h", 7, "f16")
    got, n, index = code.array("got", 6), code.array("n", 4, "i32"), code.param("index")
    count = code.array("count", 1, "i32")
    finish = code.declare("finish", blocked=True)
    with code.task("noticed", color=bell, control=True), code.regs(1) as (seen,):
        code.load(seen, count)
        code.iadd(seen, seen, 1)
        code.store(count, seen)
    with code.task("main"):
        if y == HEIGHT - 1:
            code.mov(code.send(sends, 7, "f16"), h, thread=1, activate=finish)
        elif y > 0:
            code.add(code.send(sends, 7, "f16"), h, code.recv(hears, 7, "f16"), thread=1, activate=finish)
        else:
            code.add(h, h, code.recv(hears, 7, "f16"), thread=1, activate=finish)
        with code.regs(2) as (mine, total):
            code.load(mine, index)
            with code.loop(WIDTH) as step:
                with code.if_(mine, "==", step):
                    code.mov(code.send(turn, 6), x)
                    with code.if_(step, "<", WIDTH - 1):
                        code.control(turn, CONTROL_ADVANCE, CONTROL_ADVANCE)
                    with code.if_(step, "==", WIDTH - 1):
                        code.control(turn, CONTROL_RESET_ALL)
                with code.if_(mine, "!=", step):
                    code.fmac(got, code.recv(turn, 6), 0.5, got)
            code.li(total, 0.0)
            code.dot(total, got, x)
            code.apply("tanh", total, total)
            code.store(got, total, 5)
        code.unblock(finish)
    with code.task("finish"):
        _scalars(code, x, got, n)
        with code.regs(1) as (mine,):
            code.load(mine, index)
            with code.if_(mine, "==", 0):
                code.control(bell)
        code.done()


def _scalars(code: Code, x: Array, got: Array, n: Array) -> None:
    low, high = code.pair()
    code.li(low, -1e30)
    code.li(high, 0)
    code.argmax(low, x)
    code.store(n, high, 0)
    code.integer("shl", high, high, 3)
    code.imod(high, high, 5)
    code.store(n, high, 1)
    code.counter(low)
    code.store(n, low, 2)
    code.release(low, high)
    for function, place in (("exp", 0), ("gelu", 1), ("erf", 2), ("rsqrt", 3)):
        code.apply(function, got[place : place + 1], x[place : place + 1])
    code.add(n, n, code.view(n, 3, 4, -1))
    view = code.view(x, 0, 4, 1, inner=2, outer=3)
    code.mul(view, view, view)


def load(machine: Machine) -> Machine:
    """The busy program's data."""
    rng = np.random.default_rng(7)
    machine.memcpy_h2d("x", rng.standard_normal((HEIGHT, WIDTH, 6)))
    machine.memcpy_h2d("h", rng.standard_normal((HEIGHT, WIDTH, 7)))
    machine.memcpy_h2d("index", np.broadcast_to(np.arange(WIDTH), (HEIGHT, WIDTH)))
    return machine


def different(one: State, other: State) -> list[str]:
    """Fields in which two states differ (the ring buffers' stale entries too)."""
    names = [field.name for field in fields(State) if field.name != "fault"]
    return [name for name in names if not np.array_equal(getattr(one, name), getattr(other, name))]


def mutant(image: Image, rng: np.random.Generator) -> Image:
    """The image with one to four words of code, descriptors or routes changed: wild or others' values."""
    code, dsd = image.code.copy(), image.dsd.copy()
    tx, rx = image.route_tx.copy(), image.route_rx.copy()
    for _ in range(rng.integers(1, 5)):
        target = (code, code, dsd, tx, rx)[rng.integers(5)]
        flat = target.reshape(-1)
        place = rng.integers(flat.size)
        if target is tx or target is rx:
            flat[place] ^= 1 << rng.integers(isa.N_PORTS)
        elif rng.random() < 0.5:
            flat[place] = flat[rng.integers(flat.size)]
        else:
            flat[place] = rng.choice([-(2**31), -1, 0, 1, 2, 3, 5, 7, 16, 17, 40, 2**31 - 1])
    return dataclasses.replace(image, code=code, dsd=dsd, route_tx=tx, route_rx=rx)


def every_function() -> Program:
    """32 PEs apply every elementwise operation of `Alu` to 8 values each; float32 and float16 results."""
    program = Program(32, 1)
    code = program.role("worker")
    a, b, c = (code.array(name, 8) for name in "abc")
    whole = code.array("whole", 8, "i32")
    with code.task("main"):
        for mode in list(Alu)[: isa.FIRST_REDUCTION]:
            sources = (a, b, c)[: isa.N_SOURCES[mode]]
            if mode == Alu.I2F:
                sources = (whole,)
            code.vector(
                mode,
                code.array(f"{mode.name} {mode == Alu.F2I}", 8, "i32" if mode == Alu.F2I else "f32"),
                *sources,
            )
            if mode not in (Alu.I2F, Alu.F2I):
                code.vector(mode, code.array(f"{mode.name} half", 8, "f16"), *sources)
        for mode in (Alu.MOV, Alu.ADD, Alu.SUB, Alu.MUL, Alu.MAX, Alu.MIN):
            code.vector(
                mode,
                code.array(f"{mode.name} whole", 8, "i32"),
                *(whole, whole[::-1])[: isa.N_SOURCES[mode]],
            )
        code.done()
    return program
