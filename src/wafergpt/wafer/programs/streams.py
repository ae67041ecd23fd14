"""Weights of successive layers, read from memory one after the other."""

from __future__ import annotations

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.operands import Array, Dsd


class Stream:
    """The parts of an array, `length` elements each, one per use."""

    def __init__(self, code: Code, array: Array, length: int) -> None:
        self._code, self._array, self._length = code, array, length
        self.view: Dsd = code.view(array, 0, length)

    def next(self) -> None:
        """Go on to the next part."""
        self._code.advance(self.view, self._length)

    def rewind(self) -> None:
        """Go back to the first part."""
        self._code.set(self.view, "base", self._array.address)


class TileProducts:
    """y = W x on a PE, W the next of the [m, k] tiles that `array` holds, each column by column.

    Float32: ascending k, each product rounded before it is added. Cycles: k (m + 6) and a few.
    """

    def __init__(self, code: Code, array: Array, m: int) -> None:
        self._code, self._m = code, m
        self._columns = Stream(code, array, m)

    def emit(self, y: Array, x: Array) -> None:
        """y [m] = W x; x [k]. The next use takes the tile that follows."""
        code, column = self._code, self._columns.view
        code.mov(y, 0.0)
        with code.loop(x.length) as k, code.regs(1) as (factor,):
            code.load(factor, x, k)
            code.fmac(y, column, factor, y)
            self._columns.next()

    def rewind(self) -> None:
        """Go back to the first tile."""
        self._columns.rewind()
