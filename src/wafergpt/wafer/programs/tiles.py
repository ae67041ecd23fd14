"""Matrices on the mesh: cut into tiles, one per PE, each stored column by column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.isa import Alu
from wafergpt.wafer.machine.timing import FUNCTION_CYCLES, Timing


def split(matrix: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """matrix [rows, columns] as [height, width, tile rows * tile columns], tiles column-major.

    Raises ProgramError if the matrix does not divide.
    """
    rows, columns = matrix.shape
    if rows % height or columns % width:
        raise ProgramError(f"a {rows} x {columns} matrix does not divide into {height} x {width} tiles")
    tiles = matrix.reshape(height, rows // height, width, columns // width)
    return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1)).reshape(height, width, -1)


def join(tiles: NDArray[Any], tile_rows: int) -> NDArray[Any]:
    """The inverse of `split`: tiles [height, width, tile rows * tile columns] as a matrix."""
    height, width, n = tiles.shape
    columns = n // tile_rows
    parts = tiles.reshape(height, width, columns, tile_rows).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(parts).reshape(height * tile_rows, width * columns)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Software around a library's matrix product that the instructions do not show, in cycles.

    [fitted] to the four rows of `gemm_summa_csl` among the published measurements (CSL's SUMMA with
    collectives_2d, fp32, on the machine at 0.85 GHz: 2 x 2 PEs with tile 46, 64 x 64 with tiles 4, 8, 32);
    `benchmarks/wafer_simulator.py` prints what comes out.
    """

    step_cycles: int = 0  # per step: two library calls, callbacks, task launches
    call_cycles: int = 0  # per vector call: descriptors and the scalar fetched by compiled code
    fmac_cycles: int = 1  # per float32 multiply-accumulate on memory operands

    def timing(self) -> Timing:
        """The machine's figures with these costs."""
        return Timing(function_cycles=FUNCTION_CYCLES | {Alu.FMAC: self.fmac_cycles})


BARE = Costs()
CSL_LIBRARY = Costs(step_cycles=290, call_cycles=20, fmac_cycles=2)
