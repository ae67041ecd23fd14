"""The closed forms against the cycle simulator, program by program and mesh by mesh, within 10 %."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.wafer.analytic import mesh, programs
from wafergpt.wafer.machine import native
from wafergpt.wafer.programs import gemm, gemv, tiles

BAR = 0.10
pytestmark = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")
EDGES = [4, 8, 16, 32, pytest.param(64, marks=pytest.mark.long)]


def matrix(n: int) -> np.ndarray:
    return np.zeros((n, n), np.float32)


def error(modelled: float, simulated: int) -> float:
    return max(modelled / simulated, simulated / modelled) - 1.0


@pytest.mark.parametrize("tile", [4, 6])
@pytest.mark.parametrize("edge", EDGES)
def test_summa(edge: int, tile: int) -> None:
    a = matrix(edge * tile)
    assert error(mesh.summa_cycles(tile, tile, tile, edge), gemm.summa(a, a, edge).cycles) <= BAR


@pytest.mark.parametrize("edge", EDGES)
def test_summa_with_the_librarys_costs(edge: int) -> None:
    a = matrix(edge * 4)
    simulated = gemm.summa(a, a, edge, costs=tiles.CSL_LIBRARY).cycles
    assert error(programs.summa_cycles(edge * 4, edge * 4, edge * 4, (edge, edge)), simulated) <= BAR


@pytest.mark.parametrize("product", [gemm.cannon, gemm.mesh_gemm])
@pytest.mark.parametrize("edge", EDGES)
def test_cannon_and_mesh_gemm(edge: int, product) -> None:
    a = matrix(edge * 4)
    assert error(mesh.cannon_cycles(4, 4, 4, edge), product(a, a, edge).cycles) <= BAR


@pytest.mark.parametrize("tile", [2, 8, 14])
@pytest.mark.parametrize("edge", EDGES)
def test_gemv(edge: int, tile: int) -> None:
    a = matrix(edge * tile)
    assert error(mesh.gemv_cycles(tile, tile, edge), gemv.gemv(a, a[0], edge, edge).cycles) <= BAR


def test_the_comparison_can_fail() -> None:
    a = matrix(32)
    assert error(mesh.summa_cycles(4, 4, 3, 8), gemm.summa(a, a, 8).cycles) > BAR  # a column is forgotten
