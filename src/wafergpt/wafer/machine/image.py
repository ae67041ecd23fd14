"""A built program: the arrays that both engines read, and the check of every instruction word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.arch import SIMULATED
from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.errors import ProgramError, UnknownOperationError
from wafergpt.wafer.machine.isa import Alu, Cond, Int, Kind, Op, Type, Word
from wafergpt.wafer.machine.operands import Array
from wafergpt.wafer.machine.routes import check_routes
from wafergpt.wafer.machine.timing import Timing

Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Image:
    """P = width * height PEs in row order, C colors in use. Read only."""

    width: int
    height: int
    timing: Timing
    color_names: tuple[str, ...]
    role_names: tuple[str, ...]
    role: Ints  # [P]
    arrays: tuple[dict[str, Array], ...]  # per role
    sram_bytes: tuple[int, ...]  # per role: code, descriptors and arrays
    mem_bytes: int  # addressable, the largest role's arrays
    code: Ints  # [n_code, WORDS]
    dsd: Ints  # [roles, n_dsd, DSD_WORDS]
    task_names: tuple[dict[str, int], ...]  # per role
    task_entry: Ints  # [P, N_TASKS]
    task_color: Ints  # [P, N_TASKS]
    task_control: Bytes  # [P, N_TASKS]
    blocked: NDArray[np.uint32]  # [P]
    route_rx: Bytes  # [P, C, N_POSITIONS]
    route_tx: Bytes
    n_positions: Bytes  # [P, C]
    ring_mode: Bytes  # [P, C]
    ramp_use: Bytes  # [P, C]
    phases: tuple[str, ...] = ()  # per instruction, "": none; for the timeline

    @property
    def n_pes(self) -> int:
        """PEs of the mesh."""
        return self.width * self.height

    def check(self) -> None:
        """Raise UnknownOperationError, RouteError or ProgramError for what the engines must not meet."""
        most = int(SIMULATED["n_colors"].value)
        if len(self.color_names) > most:
            raise ProgramError(f"{len(self.color_names)} colors; a router has {most}")
        check_code(self.code, self.dsd.shape[1])
        check_dsd(self.dsd)
        check_routes(self.route_rx, self.route_tx, (self.height, self.width), self.color_names)


_MODES = {
    Op.IALU: len(Int),
    Op.FALU: isa.FIRST_REDUCTION,
    Op.LOAD: len(Type),
    Op.STORE: len(Type),
    Op.BRANCH: len(Cond),
    Op.VECTOR: isa.N_ALU,
}
_R = isa.N_REGISTERS


def check_code(code: Ints, n_dsd: int) -> None:
    """Raise UnknownOperationError for a word that the engines must not meet.

    code [n_code, WORDS]: operations, modes, registers, descriptors, tasks, threads and branch targets.
    """
    for pc, word in enumerate(code.tolist()):
        problem = _problem(word, len(code), n_dsd)
        if problem:
            raise UnknownOperationError(f"instruction {pc}: {problem}")


def _problem(word: list[int], n_code: int, n_dsd: int) -> str:
    op, mode = word[Word.OP], word[Word.MODE]
    if not 0 <= op < len(Op):
        return f"unknown operation {op}"
    op = Op(op)
    if op in _MODES and not 0 <= mode < _MODES[op]:
        return f"{op.name} has no mode {mode}"
    if op == Op.DSET and mode not in isa.MUTABLE_FIELDS:
        return f"DSET of field {mode}"
    if op in (Op.DSET, Op.DADD):
        if not 0 <= word[Word.DST] < n_dsd:
            return f"descriptor {word[Word.DST]} of {n_dsd}"
        return "" if -1 <= word[Word.A] < _R else f"register {word[Word.A]}"
    if op == Op.VECTOR:
        return _vector_problem(word, n_dsd)
    if op in (Op.ACTIVATE, Op.UNBLOCK, Op.BLOCK) and not 0 <= word[Word.IMM] < isa.N_TASKS:
        return f"task {word[Word.IMM]}"
    if op == Op.JUMP and not 0 <= word[Word.IMM] < n_code:
        return f"jump to {word[Word.IMM]} of {n_code}"
    if op == Op.BRANCH and not 0 <= word[Word.C] < n_code:
        return f"branch to {word[Word.C]} of {n_code}"
    return _register_problem(op, word)


def _register_problem(op: Op, word: list[int]) -> str:
    targets = (Op.LI, Op.IALU, Op.FALU, Op.LOAD, Op.STORE, Op.COUNTER)
    if op in targets and not 0 <= word[Word.DST] < _R - (op == Op.COUNTER):
        return f"register {word[Word.DST]}"
    lowest_a = 0 if op in (Op.IALU, Op.BRANCH) else -1
    needed = {
        Op.IALU: (Word.A, Word.B),
        Op.FALU: (Word.A, Word.B, Word.C),
        Op.LOAD: (Word.A,),
        Op.STORE: (Word.A,),
        Op.BRANCH: (Word.A, Word.B),
        Op.DELAY: (Word.A,),
    }
    for place in needed.get(op, ()):
        lowest = lowest_a if place == Word.A else -1
        if not lowest <= word[place] < _R:
            return f"register {word[place]}"
    return ""


def _vector_problem(word: list[int], n_dsd: int) -> str:
    if not 0 <= word[Word.THREAD] < isa.N_THREADS:
        return f"thread {word[Word.THREAD]}"
    for place in (Word.ACTIVATE, Word.UNBLOCK):
        if not -1 <= word[place] < isa.N_TASKS:
            return f"task {word[place]}"
    n_sources = isa.N_SOURCES[Alu(word[Word.MODE])]
    for place in (Word.DST, Word.A, Word.B, Word.C)[: n_sources + 1]:
        if not 0 <= word[place] < _R + n_dsd:
            return f"operand {word[place]}"
    return ""


def check_dsd(dsd: Ints) -> None:
    """Raise UnknownOperationError for a descriptor of an unknown kind or type; dsd [..., DSD_WORDS]."""
    kinds, types = dsd[..., isa.Field.KIND], dsd[..., isa.Field.TYPE]
    if ((kinds < 0) | (kinds > Kind.CONTROL)).any() or ((types < 0) | (types >= len(Type))).any():
        raise UnknownOperationError("a descriptor of unknown kind or type")
