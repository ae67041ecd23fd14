"""GEMV and GEMM on the mesh: values exactly in the stated order, cycles near the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.programs import gemm, gemv, tiles, trees

needs_native = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")


def matrix(rows: int, columns: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(dtype)


@needs_native
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("edge", [1, 2, 5, 8])
def test_products_are_exact_in_their_order(edge: int, dtype: type) -> None:
    a, b = matrix(edge * 3, edge * 4, dtype), matrix(edge * 4, edge * 2, dtype)
    kind = "f32" if dtype is np.float32 else "f16"
    np.testing.assert_array_equal(gemm.summa(a, b, edge, type=kind).c, gemm.ordered_product(a, b, edge))
    for ring in (gemm.neighbours_in_turn(edge), gemm.interleaved(edge)):
        run = gemm.cannon(a, b, edge, ring=ring, type=kind)
        np.testing.assert_array_equal(run.c, gemm.ordered_product(a, b, edge, ring))


def test_products_on_the_reference_engine() -> None:
    a, b = matrix(4, 4), matrix(4, 4)
    assert (gemm.summa(a, b, 2, engine="numpy").c == gemm.ordered_product(a, b, 2)).all()
    assert (gemm.mesh_gemm(a, b, 2, engine="numpy").c == gemm.ordered_product(a, b, 2, [0, 1])).all()


@needs_native
def test_a_wrong_order_shows() -> None:
    """SUMMA's order of additions is not Cannon's: float32 tells them apart."""
    a, b = matrix(40, 40), matrix(40, 40)
    assert (gemm.summa(a, b, 8).c != gemm.ordered_product(a, b, 8, gemm.neighbours_in_turn(8))).any()


def test_an_interleaved_ring_goes_two_hops_at_most() -> None:
    for edge in range(2, 20):
        ring = gemm.interleaved(edge)
        hops = [abs(ring[place] - ring[place - 1]) for place in range(edge)]
        assert sorted(ring) == list(range(edge))
        assert max(hops) <= 2


@needs_native
@pytest.mark.parametrize("tree", [trees.chain, trees.two_phase, trees.binary])
def test_gemv_is_exact_in_its_order(tree: object) -> None:
    w, x = matrix(12, 35), matrix(1, 35)[0]
    chosen = tree(7)  # type: ignore[operator]
    run = gemv.gemv(w, x, 7, 3, tree=chosen)
    np.testing.assert_array_equal(run.y, gemv.ordered_product(w, x, chosen))


def test_matrices_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ProgramError, match="does not divide"):
        gemm.summa(matrix(5, 4), matrix(4, 4), 2)


@needs_native
def test_summa_takes_the_published_cycles() -> None:
    """Row W244 of the published measurements, 2 x 2 PEs with tiles of 46; the others by the benchmark."""
    a = matrix(92, 92)
    run = gemm.summa(a, a, 2, costs=tiles.CSL_LIBRARY)
    assert abs(run.cycles / 600_061 - 1) <= 0.04


@needs_native
@pytest.mark.long
def test_summa_takes_the_published_cycles_on_64_x_64() -> None:
    for tile, published in ((4, 58_503), (8, 195_176)):
        a = matrix(64 * tile, 64 * tile)
        run = gemm.summa(a, a, 64, costs=tiles.CSL_LIBRARY, threads=2)
        assert abs(run.cycles / published - 1) <= 0.04, (tile, run.cycles)
