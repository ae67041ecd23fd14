"""The tied head and the greedy choice: logits by row, then the largest of all, found down the columns."""

from __future__ import annotations

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.operands import Array, Reg
from wafergpt.wafer.programs.allreduce import AllReduce
from wafergpt.wafer.programs.softmax import LOWEST
from wafergpt.wafer.programs.streams import TileProducts

_NO_TOKEN = 2**31 - 1


class Head:
    """logits = multiplier (wte h): row y has those of the tokens y m .. (y + 1) m in all its PEs."""

    def __init__(
        self, code: Code, lines: tuple[AllReduce, AllReduce], wte: Array, logits: Array, row: Array
    ) -> None:
        self._code, (self._rows, self._columns) = code, lines
        self._logits, self._row = logits, row
        self._product = TileProducts(code, wte, logits.length)
        self._best, self._index = code.array("best logit", 1), code.array("best token", 1, "i32")
        self._lane = self._rows.lane(logits.length)
        self._best_lane, self._index_lane = self._columns.lane(1), self._columns.lane(1, "i32")

    def emit_logits(self, h: Array, multiplier: float = 1.0) -> None:
        """Logits from h [n], the column's part of the last hidden state."""
        self._product.rewind()
        self._product.emit(self._logits, h)
        self._rows.emit(self._logits, self._lane)
        if multiplier != 1.0:
            self._code.mul(self._logits, self._logits, multiplier)

    def emit_argmax(self, token: Reg) -> None:
        """token = the first of the largest logits, in all PEs."""
        code = self._code
        value, index = code.pair()
        with code.regs(2) as (best, row):
            code.li(value, LOWEST)
            code.li(index, 0)
            code.argmax(value, self._logits)
            code.store(self._best, value)
            self._columns.emit(self._best, self._best_lane, Alu.MAX)
            code.load(best, self._best)
            code.load(row, self._row)
            code.imul(row, row, self._logits.length)
            code.li(token, _NO_TOKEN)
            with code.if_(value, "f>=", best):
                code.iadd(token, row, index)
        code.release(value, index)
        code.store(self._index, token)
        self._columns.emit(self._index, self._index_lane, Alu.MIN)
        code.load(token, self._index)
