"""Embedding look-up: token and position embeddings lie in tiles over the mesh, as matrices do.

Row y holds the vectors y m .. (y + 1) m of each table, column x their elements x n .. (x + 1) n. The row that
has the token's vector and the row that has the position's put their parts in, the others zeros; an all-reduce
down the columns gives every row the sum, rounded once.
"""

from __future__ import annotations

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.operands import Array, Reg
from wafergpt.wafer.programs.allreduce import AllReduce


class Embedding:
    """wte: tile [m, n] column by column (the head's product reads it so); wpe: tile [m', n], likewise."""

    def __init__(
        self, code: Code, columns: AllReduce, tables: tuple[Array, Array], row: Array, *, n: int
    ) -> None:
        self._code, self._columns, self._row, self._n = code, columns, row, n
        self._tables = [(table, table.length // n) for table in tables]
        self._vectors = [code.view(table, 0, n, m) for table, m in self._tables]
        self._lane = columns.lane(n)

    def emit(self, h: Array, token: Reg, position: Reg, multiplier: float = 1.0) -> None:
        """h [n] = multiplier (wte[token] + wpe[position]), this column's part, in all rows."""
        code = self._code
        code.mov(h, 0.0)
        for index, (table, m), vector in zip((token, position), self._tables, self._vectors, strict=True):
            with code.regs(2) as (mine, at):
                code.load(mine, self._row)
                code.idiv(at, index, m)
                with code.if_(at, "==", mine):
                    code.imod(at, index, m)
                    code.imul(at, at, 4)
                    code.iadd(at, at, table.address)
                    code.set(vector, "base", at)
                    code.add(h, h, vector)
        self._columns.emit(h, self._lane)
        if multiplier != 1.0:
            code.mul(h, h, multiplier)
