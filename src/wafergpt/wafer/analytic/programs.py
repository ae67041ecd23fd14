"""Cycles of single programs: tree all-reduce, GEMV, SUMMA, and the matrix-vector product of one PE."""

from __future__ import annotations

import math

from wafergpt.wafer.analytic.parameters import PARAMETERS, value
from wafergpt.wafer.arch import WSE2, Quantity

STAGE_CYCLES = 2 * WSE2.ramp_cycles + 2  # LUCZ: down the ramp, add, up the ramp, one hop
_HALVES_PER_WAVELET = 2


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def all_reduce_cycles(n: int, p: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """All-reduce of `n` halves along `p` PEs in two phases.

    Chains to the middle of about sqrt(p) groups, a chain over the groups' roots to the middle of the line,
    a broadcast from there.
    """
    group = max(1, round(math.sqrt(p)))
    wavelets = ceil_div(n, _HALVES_PER_WAVELET)
    first = (group // 2) * STAGE_CYCLES + wavelets
    n_groups = ceil_div(p, group)
    second = (n_groups // 2) * (group + STAGE_CYCLES - 1) + wavelets
    spread = p // 2 + 2 * WSE2.ramp_cycles + wavelets
    return first + second + spread + value("collective_call_cycles", parameters)


def vector_matrix_cycles(k: int, n: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """Local product of `k` halves with a k x n tile: k vector operations of length n, four a cycle."""
    simd = WSE2.simd["fp16"]
    setup = value("column_setup_cycles", parameters)
    return k * (ceil_div(n, simd) + value("map_cycles", parameters)) + setup


def gemv_cycles(k: int, n: int, p: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """1 x k times k x n on p x p PEs with a two-phase tree all-reduce (MeshGEMV)."""
    kt, nt = ceil_div(k, p), ceil_div(n, p)
    return vector_matrix_cycles(kt, nt, parameters) + all_reduce_cycles(nt, p, parameters)


def summa_cycles(
    m: int, k: int, n: int, grid: tuple[int, int], parameters: dict[str, Quantity] = PARAMETERS
) -> float:
    """m x k times k x n in float32 on a grid: per step a broadcast of both tiles and a local product."""
    width, height = grid
    steps = max(width, height)
    mt, kt, nt = ceil_div(m, height), ceil_div(k, steps), ceil_div(n, width)
    mac = value("summa_mac_cycles", parameters)
    mac += bank_conflict_share(mt) * value("bank_conflict_cycles", parameters)
    per_vector = value("summa_vector_cycles", parameters) + mt * mac
    return steps * (kt * nt * per_vector + value("summa_step_cycles", parameters)) + 2 * (width + height)


def bank_conflict_share(rows: int) -> float:
    """Share of column pairs of two tiles, two banks apart, that start in banks equal modulo 4.

    The columns are `rows` words long: starts move by multiples of 4 (never equal), 2 (every second pair) or
    an odd number (every fourth).
    """
    return {0: 0.0, 2: 0.5}.get(rows % 4, 0.25)


def mesh_gemm_cycles(m: int, k: int, n: int, p: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """m x k times k x n in half precision on p x p PEs by cyclic shifts of two hops (MeshGEMM)."""
    mt, kt, nt = ceil_div(m, p), ceil_div(k, p), ceil_div(n, p)
    align = (p // 2) * shift_cycles(mt * kt, parameters)
    return align + p * gemm_step_cycles(mt, kt, nt, parameters)


def gemm_step_cycles(mt: int, kt: int, nt: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """One step: the product of tiles mt x kt and kt x nt; it hides the shift of both if that is shorter."""
    per_vector = ceil_div(mt, WSE2.simd["fp16"]) + value("map_cycles", parameters)
    local = kt * (nt * per_vector + value("column_setup_cycles", parameters))
    shift = ceil_div(max(mt * kt, kt * nt), _HALVES_PER_WAVELET)
    return max(local, float(shift)) + value("shift_step_cycles", parameters)


def shift_cycles(n: int, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """One alignment shift of a tile of `n` halves by two hops."""
    return value("shift_step_cycles", parameters) / 2.0 + ceil_div(n, _HALVES_PER_WAVELET) + STAGE_CYCLES


def matvec_cycles(n: int, repeats: int = 10, parameters: dict[str, Quantity] = PARAMETERS) -> float:
    """`repeats` float32 products of an n x n matrix with a vector on one PE; columns padded to four words."""
    padded = 4 * ceil_div(n, 4)
    column = padded + value("matvec_column_cycles", parameters)
    return repeats * (n * column + value("matvec_call_cycles", parameters))
