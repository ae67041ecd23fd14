"""A program for the mesh: roles with their code, colors with their routes. Build it, load it, launch it.

A complete program: in a row of four, every PE but the last adds its eastern neighbour's vector to its own.

    program = Program(width=4, height=1)
    even, odd = program.color("even"), program.color("odd")     # what even and odd PEs send on
    for x in range(4):
        sends, hears = (even, odd) if x % 2 == 0 else (odd, even)
        if x > 0:
            program.route(sends, (x, 0), ("R", "W"))            # from the ramp to the west
        if x < 3:
            program.route(hears, (x, 0), ("E", "R"))            # from the east to the ramp
    code = program.role("worker")                               # all PEs run it
    x, color, last = code.array("x", 8), code.param("color"), code.param("last")
    ...

How to write one:

- **Roles.** `role(name, region)` gives a `Code`; its PEs share the instructions, each on its own memory.
  What differs per PE is a parameter: `code.param("p")`, set by `memcpy_h2d("p", [height, width])`, read by
  `code.load(reg, p)`. Roles may have arrays and tasks of the same name; host calls reach all of them.
- **Vectors.** `mov add sub mul max fmac div apply(function) sum dot top argmax`. An operand is an array, a
  slice of it, a `view` with strides (also in two dimensions: inner, outer), `recv(color, n)`, a register or
  a constant; the target an array, slice, view, `send(color, n)` or register. The target says the length
  (of a register target: the first source). `thread=1..8` makes the instruction asynchronous;
  `activate=task` and `unblock=task` fire on completion.
- **Descriptors that change.** `view`, `recv` and `send` give one of your own: `code.set(view, "length", r)`,
  `code.advance(view, n)`. Slices `x[2:5]` are shared and must not be changed.
- **Scalars.** `li iadd isub imul idiv imod iand integer load store`; float arithmetic through the same
  `add`, `mul`, ... on registers; `with code.loop(n) as i`, `if_`, `while_`. Registers come from `reg()` or
  `with code.regs(3) as (a, b, c)`.
- **Tasks.** `with code.task("name", color=c)` runs when a wavelet of the color arrives (in `code.argument`);
  without a color it runs when activated or launched. `control=True`: on a control wavelet. A task ends
  with its block; `done()` ends it and tells the host.
- **Routes.** `route(color, region, ("W", "RE"))`: from the west to the ramp and east (multicast). Up to
  four pairs are switch positions; control wavelets (`code.control(color, CONTROL_ADVANCE)`) move them.
- **Types** are "f32", "f16", "i32". Arithmetic is float32 with the result rounded to the target's type. A
  wavelet carries one 32-bit element or two float16.
- **Cost.** One instruction, vector step or task launch per PE and cycle, microthreads in turns. A step is 4
  float16, 2 float16 into float32 or 1 float32 elements (2 float16 per wavelet), the first in the cycle of
  issue; one cycle more where two memory operands share a bank; functions cost `Timing.function_cycles`.
- **Host.** `machine = Machine(program)`, `machine.memcpy_h2d(name, values)`, `machine.launch("main").cycles`,
  `machine.memcpy_d2h(name)`; arrays of the host are [height, width, length].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError, SramOverflowError
from wafergpt.wafer.machine.image import Image, Ints
from wafergpt.wafer.machine.isa import Op, Word
from wafergpt.wafer.machine.operands import Color
from wafergpt.wafer.machine.routes import Mask, Routes, region
from wafergpt.wafer.machine.timing import Timing


class Program:
    """A mesh of `width` x `height` PEs, PE (x, y) with (0, 0) in the north-west; x grows east, y south."""

    def __init__(self, width: int, height: int, *, timing: Timing | None = None) -> None:
        if width < 1 or height < 1:
            raise ProgramError(f"a mesh of {width} x {height} PEs")
        self.width, self.height = width, height
        self.timing = timing or Timing()
        self.colors: list[Color] = []
        self.roles: list[Code] = []
        self._routes = Routes(width, height)
        self._role_of = np.full((height, width), -1, np.int32)

    def color(self, name: str) -> Color:
        """A new color (virtual channel)."""
        if len(self.colors) == self.timing.n_colors:
            raise ProgramError(f"more than {self.timing.n_colors} colors")
        color = Color(len(self.colors), name)
        self.colors.append(color)
        self._routes.add_color()
        return color

    def route(self, color: Color, at: object, *positions: tuple[str, str], ring: bool = False) -> None:
        """Switch positions (rx ports, tx ports) of `color` in the routers `at`: see `routes.region`."""
        self._routes.set(color.index, self.region(at), positions, ring=ring)

    def region(self, at: object) -> Mask:
        """The PEs that `at` names, [height, width]."""
        return region(self.width, self.height, at)

    def role(self, name: str, at: object = None) -> Code:
        """The code that the PEs `at` (all) run; a PE has one role."""
        where = self.region(at)
        if (self._role_of[where] >= 0).any():
            raise ProgramError(f"role '{name}' takes PEs that have a role already")
        code = Code(name)
        self._role_of[where] = len(self.roles)
        self.roles.append(code)
        return code

    def build(self) -> Image:
        """The arrays that the engines run. Raises SramOverflowError, RouteError, UnknownOperationError."""
        roles = self.roles if (self._role_of >= 0).all() else [*self.roles, Code("no role")]
        role = np.where(self._role_of < 0, len(roles) - 1, self._role_of).ravel().astype(np.int32)
        sram = tuple(self._sram_bytes(code) for code in roles)
        code, starts = _link(roles)
        n_dsd = max(1, *(len(each.dsds) for each in roles)) if roles else 1
        dsd = np.zeros((len(roles), n_dsd, isa.DSD_WORDS), np.int32)
        for place, each in enumerate(roles):
            if each.dsds:
                dsd[place, : len(each.dsds)] = each.dsds
        image = Image(
            width=self.width,
            height=self.height,
            timing=self.timing,
            color_names=tuple(color.name for color in self.colors) or ("none",),
            role_names=tuple(each.name for each in roles),
            role=role,
            arrays=tuple(each.arrays for each in roles),
            sram_bytes=sram,
            mem_bytes=max(16, *(each.data_bytes + -each.data_bytes % 16 for each in roles)) if roles else 16,
            code=code,
            dsd=dsd,
            phases=tuple(phase for each in roles for phase in each.phases),
            **_tasks(roles, starts, role),
            **self._route_arrays(roles, role),
        )
        image.check()
        return image

    def _sram_bytes(self, code: Code) -> int:
        n_bytes = code.data_bytes + isa.DSD_BYTES * len(code.dsds) + isa.INSTRUCTION_BYTES * len(code.words)
        if n_bytes > self.timing.sram_bytes:
            raise SramOverflowError(
                f"role '{code.name}' needs {n_bytes} bytes of SRAM, a PE has {self.timing.sram_bytes}: "
                f"arrays {code.data_bytes}, {len(code.dsds)} descriptors, {len(code.words)} instructions"
            )
        return n_bytes

    def _route_arrays(self, roles: list[Code], role: Ints) -> dict[str, Any]:
        routes = self._routes
        if not self.colors:
            routes = Routes(self.width, self.height)
            routes.add_color()
        rx, tx = np.stack(routes.rx, axis=1), np.stack(routes.tx, axis=1)
        ramp = 1 << isa.RAMP
        use = ((rx & ramp) != 0).any(axis=2) * 1 + ((tx & ramp) != 0).any(axis=2) * 2
        for place, code in enumerate(roles):
            for task in code.tasks.values():
                if task.color is not None and task.control:
                    use[role == place, task.color.index] |= 4
        return {
            "route_rx": np.ascontiguousarray(rx),
            "route_tx": np.ascontiguousarray(tx),
            "n_positions": np.ascontiguousarray(np.stack(routes.n_positions, axis=1)),
            "ring_mode": np.ascontiguousarray(np.stack(routes.ring, axis=1)),
            "ramp_use": np.ascontiguousarray(use.astype(np.uint8)),
        }


def _link(roles: list[Code]) -> tuple[Ints, list[int]]:
    """All roles' instructions in one array, jumps moved, and where each role starts."""
    words: list[list[int]] = []
    starts = []
    for code in roles:
        start = len(words)
        starts.append(start)
        for given in code.words:
            word = list(given)
            if word[Word.OP] == Op.JUMP:
                word[Word.IMM] += start
            elif word[Word.OP] == Op.BRANCH:
                word[Word.C] += start
            words.append(word)
    if not words:
        words.append([int(Op.END), 0, -1, -1, -1, -1, 0, 0, -1, -1])
    return np.array(words, np.int64).astype(np.int32), starts


def _tasks(roles: list[Code], starts: list[int], role: Ints) -> dict[str, Any]:
    entry = np.full((len(roles), isa.N_TASKS), -1, np.int32)
    color = np.full((len(roles), isa.N_TASKS), -1, np.int32)
    control = np.zeros((len(roles), isa.N_TASKS), np.uint8)
    blocked = np.zeros(len(roles), np.uint32)
    for place, code in enumerate(roles):
        for task in code.tasks.values():
            if task.name not in code.entries:
                raise ProgramError(f"task '{task.name}' of role '{code.name}' is declared but not written")
            entry[place, task.index] = starts[place] + code.entries[task.name]
            color[place, task.index] = -1 if task.color is None else task.color.index
            control[place, task.index] = task.control
            blocked[place] |= np.uint32(task.blocked << task.index)
    return {
        "task_names": tuple({task.name: task.index for task in code.tasks.values()} for code in roles),
        "task_entry": np.ascontiguousarray(entry[role]),
        "task_color": np.ascontiguousarray(color[role]),
        "task_control": np.ascontiguousarray(control[role]),
        "blocked": np.ascontiguousarray(blocked[role]),
    }
