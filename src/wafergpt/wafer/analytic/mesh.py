"""Closed forms of the cycle simulator's own products, bare of a library's costs, on edge x edge PEs.

The constants count instructions of `wafer.programs`; the tests hold the two to each other within 10 %.
"""

from __future__ import annotations

from wafergpt.wafer.analytic.programs import bank_conflict_share
from wafergpt.wafer.programs import trees

CALL_CYCLES = 7  # one vector operation: scalar load, issue, two descriptors, loop
COLUMN_CYCLES = 8  # one column of the left tile: descriptors, index, loop
STEP_CYCLES = 24  # one step: selects, waits, control wavelets
GEMV_CALL_CYCLES = 6  # one column of a matrix-vector product
GEMV_CYCLES = 12  # timing, start and end of a matrix-vector product


def _mac_cycles(rows: int) -> float:
    """Cycles per multiply-accumulate: one, and one more where the operands' banks collide."""
    return 1.0 + bank_conflict_share(rows)


def summa_cycles(m: int, k: int, n: int, edge: int) -> float:
    """SUMMA with tiles m x k and k x n per PE."""
    calls = k * n * (CALL_CYCLES + m * _mac_cycles(m))
    return edge * (calls + k * COLUMN_CYCLES + STEP_CYCLES)


def cannon_cycles(m: int, k: int, n: int, edge: int) -> float:
    """Cannon or MeshGEMM: as SUMMA, and both tiles written again by the threads that shift them."""
    return summa_cycles(m, k, n, edge) + max(edge - 2, 0) * (m * k + k * n)


def gemv_cycles(m: int, k: int, edge: int) -> float:
    """Matrix-vector product with tiles m x k: local columns, two-phase reduce, broadcast."""
    local = k * (GEMV_CALL_CYCLES + m * _mac_cycles(m))
    if edge == 1:
        return local + GEMV_CYCLES
    reduce = trees.tree_cycles(trees.two_phase(edge), m)
    return local + reduce + trees.broadcast_cycles(edge, m) + GEMV_CYCLES
