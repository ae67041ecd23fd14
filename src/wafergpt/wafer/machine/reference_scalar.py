"""Scalar instructions of the NumPy reference: one per PE, grouped by operation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.alu import alu, bits_to_half, condition, half_to_bits, int_alu
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Alu, Cond, Fault, Field, Int, Op, Type, Word
from wafergpt.wafer.machine.queues import Index, Mask
from wafergpt.wafer.machine.reference_vector import Raise, Vectors
from wafergpt.wafer.machine.spans import SpanKind, record
from wafergpt.wafer.machine.state import State

Code = NDArray[np.int32]  # [n, WORDS]


class Scalars:
    """Executes the instruction at each PE's pc."""

    def __init__(self, image: Image, state: State, vectors: Vectors, fault: Raise) -> None:
        self._image, self._state, self._vectors, self._fault = image, state, vectors, fault

    def step(self, pe: Index, cycle: int) -> None:
        """One instruction per PE; charges its cycles."""
        state = self._state
        pc = state.pc[pe].astype(np.int64)
        over = pc >= len(self._image.code)
        self._fault(Fault.UNKNOWN_OPERATION, pe[over], pc[over], np.full(int(over.sum()), -1))
        pe, pc = pe[~over], pc[~over]
        state.pc[pe] = pc + 1
        cost = np.ones(len(pe), np.int64)
        op = self._image.code[pc, Word.OP]
        for value in np.unique(op):
            here = np.flatnonzero(op == value)
            cost[here] = self._one(Op(int(value)), pe[here], pc[here], cycle)
        state.busy_until[pe] = cycle + cost
        state.busy_cycles[pe] += cost
        stepped = self._first_step(pe, pc, (op == Op.VECTOR) & (cost > 0), cycle)
        tag = np.where(state.pc[pe] < 0, int(SpanKind.END), int(SpanKind.SCALAR))
        record(state, pe[~stepped], cycle, cost[~stepped], tag[~stepped], pc[~stepped])

    def _first_step(self, pe: Index, pc: Index, issued: Mask, cycle: int) -> Mask:
        """A vector instruction takes its first step in the cycle in which it is issued, if it can: where."""
        stepped = issued.copy()
        thread = self._image.code[pc[issued], Word.THREAD].astype(np.int64)
        can = self._vectors.ready(pe[issued], self._state.slots[pe[issued], thread], cycle)
        stepped[issued] = can
        self._state.busy_cycles[pe[stepped]] -= 1
        self._vectors.step(pe[stepped], thread[can], cycle)
        return stepped

    def _a_or_imm(self, pe: Index, code: Code) -> NDArray[np.int32]:
        return self._or_imm(pe, code, Word.A)

    def _or_imm(self, pe: Index, code: Code, word: Word) -> NDArray[np.int32]:
        register = code[:, word]
        return np.where(register < 0, code[:, Word.IMM], self._state.regs[pe, np.maximum(register, 0)])

    def _one(self, op: Op, pe: Index, pc: Index, cycle: int) -> Index | int:
        """Execute one operation on these PEs; its cost in cycles, 0 after a fault."""
        state, code = self._state, self._image.code[pc]
        dst, imm, bit = code[:, Word.DST], code[:, Word.IMM], np.uint32(1)
        match op:
            case Op.LI:
                state.regs[pe, dst] = imm
            case Op.IALU:
                return self._integers(pe, code)
            case Op.FALU:
                return self._floats(pe, code)
            case Op.LOAD | Op.STORE:
                return self._access(op, pe, pc)
            case Op.BRANCH:
                self._branch(pe, code)
            case Op.JUMP:
                state.pc[pe] = imm
            case Op.COUNTER:
                state.regs[pe, dst] = cycle
                state.regs[pe, dst + 1] = 0
            case Op.ACTIVATE:
                state.active[pe] |= bit << imm.astype(np.uint32)
            case Op.UNBLOCK:
                state.blocked[pe] &= ~(bit << imm.astype(np.uint32))
            case Op.BLOCK:
                state.blocked[pe] |= bit << imm.astype(np.uint32)
            case Op.END:
                state.pc[pe] = -1
            case Op.DONE:
                state.pc[pe] = -1
                state.done_cycle[pe] = cycle
            case Op.DELAY:
                state.main_ready[pe] = cycle + np.maximum(self._a_or_imm(pe, code), 1).astype(np.int64)
            case Op.DSET:
                state.dsd[pe, dst, code[:, Word.MODE]] = self._a_or_imm(pe, code)
            case Op.DADD:
                size = np.where(state.dsd[pe, dst, Field.TYPE] == Type.F16, 2, 4).astype(np.int32)
                state.dsd[pe, dst, Field.BASE] += self._a_or_imm(pe, code) * size
            case Op.VECTOR:
                return self._vectors.issue(pe, pc).astype(np.int64)
        return 1

    def _integers(self, pe: Index, code: Code) -> Index:
        a, b = self._state.regs[pe, code[:, Word.A]], self._or_imm(pe, code, Word.B)
        mode = code[:, Word.MODE]
        for value in np.unique(mode):
            here = mode == value
            self._state.regs[pe[here], code[here, Word.DST]] = int_alu(Int(int(value)), a[here], b[here])
        slow = (mode == Int.DIV) | (mode == Int.MOD)
        return np.where(slow, self._image.timing.div_cycles, 1)

    def _floats(self, pe: Index, code: Code) -> Index:
        words = [self._or_imm(pe, code, place).view(np.uint32) for place in (Word.A, Word.B, Word.C)]
        mode = code[:, Word.MODE]
        for value in np.unique(mode):
            here = mode == value
            result = alu(Alu(int(value)), *(word[here] for word in words))
            self._state.regs[pe[here], code[here, Word.DST]] = result.view(np.int32)
        return np.array(self._image.timing.alu_cycles())[mode]

    def _branch(self, pe: Index, code: Code) -> None:
        a = self._state.regs[pe, code[:, Word.A]].view(np.uint32)
        b = self._or_imm(pe, code, Word.B).view(np.uint32)
        for value in np.unique(code[:, Word.MODE]):
            here = code[:, Word.MODE] == value
            taken = np.flatnonzero(here)[condition(Cond(int(value)), a[here], b[here])]
            self._state.pc[pe[taken]] = code[taken, Word.C]

    def _access(self, op: Op, pe: Index, pc: Index) -> Index:
        state, code = self._state, self._image.code[pc]
        register = code[:, Word.A]
        start = np.where(register < 0, 0, state.regs[pe, np.maximum(register, 0)]).astype(np.int64)
        at = start + code[:, Word.IMM]
        half = code[:, Word.MODE] == Type.F16
        size = np.where(half, 2, 4)
        bad = (at < 0) | (at + size > self._image.mem_bytes) | (at & (size - 1) != 0)
        self._fault(Fault.MEMORY, pe[bad], pc[bad], at[bad])
        words, halves = state.mem.view(np.uint32), state.mem.view(np.uint16)
        for rows, narrow in ((np.flatnonzero(~bad & ~half), False), (np.flatnonzero(~bad & half), True)):
            who, where, reg = pe[rows], at[rows] >> (1 if narrow else 2), code[rows, Word.DST]
            if op == Op.LOAD:
                value = half_to_bits(halves[who, where]) if narrow else words[who, where]
                state.regs[who, reg] = value.view(np.int32)
            elif narrow:
                halves[who, where] = bits_to_half(state.regs[who, reg].view(np.uint32))
            else:
                words[who, where] = state.regs[who, reg].view(np.uint32)
        return np.where(bad, 0, 1)
