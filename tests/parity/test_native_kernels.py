"""Each native kernel, on every instruction set, against float64 NumPy; rows do not depend on company."""

from __future__ import annotations

import numpy as np
import pytest

from native_lab import (
    ADD_TO,
    BF16,
    EPS,
    GELU_ERF,
    GELU_TANH,
    STORE,
    Weights,
    attention,
    causal_attention,
    gelu,
    inputs_as_seen,
    isas,
    layer_norm,
    needs_library,
    product,
)
from wafergpt.kernels import native
from wafergpt.kernels.native import Format

pytestmark = needs_library
FORMATS = tuple(Format)
# (rows, n, k): one of everything, around a vector, a panel, a tile of rows, a pass over k; odd ones.
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (7, 64, 32),
    (6, 65, 33),
    (13, 130, 100),
    (97, 70, 513),
    (1, 200, 3072),
    (5, 63, 1000),
]
SCALES = {"plain": 1.0, "denormal": 1e-41, "tiny": 1e-30, "large": 1e15}


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bound(isa: str, format: Format, w: Weights, x: np.ndarray) -> np.ndarray:
    """How far float32 sums may be from exact ones: EPS per addition of the sum of magnitudes, [rows, n].

    int8 sums are exact, int4 ones within a group: what is left is a few roundings of the whole. bfloat16's
    instructions and denormals: what they take as zero is below 2^-126 a factor, what they make zero a sum.
    """
    magnitude = np.abs(x) @ np.abs(w.exact).T
    k = x.shape[1]
    roundings = {Format.F32: k, Format.BF16: k, Format.INT8: 4, Format.INT4: k / 32 + 4}[format]
    lost = 0
    if format is Format.BF16:
        lost = 2.0**-126 * (np.abs(x).sum(1)[:, None] + np.abs(w.exact).sum(1)[None] + 2 * k)
    return roundings * EPS * magnitude + lost + 1e-44 * k


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_products_over_ragged_shapes(isa: str, format: Format) -> None:
    for rows, n, k in SHAPES:
        w, x = Weights.pack(format, draw((n, k), 1)), draw((rows, k), 2)
        seen = inputs_as_seen(isa, format, x)
        assert np.all(np.abs(product(isa, w, x) - seen @ w.exact.T) <= bound(isa, format, w, seen)), (
            rows,
            n,
            k,
        )


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("size", SCALES)
def test_products_of_denormal_and_large_values(isa: str, format: Format, size: str) -> None:
    scale = SCALES[size]
    w, x = Weights.pack(format, draw((70, 70), 1)), draw((3, 70), 2, scale)
    seen = inputs_as_seen(isa, format, x)
    assert np.all(np.abs(product(isa, w, x) - seen @ w.exact.T) <= bound(isa, format, w, seen))
    w, x = Weights.pack(format, draw((70, 70), 1, scale)), draw((3, 70), 2)
    seen = inputs_as_seen(isa, format, x)
    assert np.all(np.abs(product(isa, w, x) - seen @ w.exact.T) <= bound(isa, format, w, seen))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_a_row_is_the_same_in_any_company(isa: str, format: Format) -> None:
    """Bit-equal alone, in tiles of every size, and across passes over k (3072 takes eight)."""
    for n, k in ((130, 100), (64, 3072)):
        w, x = Weights.pack(format, draw((n, k), 1)), draw((23, k), 2)
        whole = product(isa, w, x)
        for parts in ([1] * 23, [2, 3, 4, 5, 6, 3], [22, 1], [7, 16]):
            assert np.array_equal(product(isa, w, x, parts=parts), whole), (n, k, parts)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("finish", [STORE, GELU_ERF, GELU_TANH, ADD_TO])
def test_what_is_done_to_a_finished_sum(isa: str, finish: int) -> None:
    """GELU: 1.5e-7 |x| is the erf formula's own error, the rest follows the argument's (slope below 1.13)."""
    w, x, bias = Weights.pack(Format.F32, draw((70, 40), 1)), draw((9, 40), 2), draw((70,), 3)
    expected = 0.5 * (x.astype(np.float64) @ w.exact.T) + bias
    error = bound(isa, Format.F32, w, x) + 4 * EPS * np.abs(expected)
    if finish in (GELU_ERF, GELU_TANH):
        error = 1.13 * error + 4e-7 * np.abs(expected) + 1e-7
        expected = gelu(expected, finish == GELU_TANH)
    found = product(isa, w, x, bias=bias, finish=finish, alpha=0.5)  # adds to zeros
    assert np.all(np.abs(found - expected) <= error)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spreads_and_stays_in_its_row(isa: str, format: Format, value: float) -> None:
    w, x = Weights.pack(format, draw((70, 40), 1)), draw((5, 40), 2)
    clean = product(isa, w, x)
    x[3, 17] = value
    found = product(isa, w, x)
    assert not np.isfinite(found[3]).any()
    assert np.array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))
    weight = draw((70, 40), 1)
    weight[5, 39] = value
    found = product(isa, Weights.pack(format, weight), draw((5, 40), 2))
    assert not np.isfinite(found[:, 5]).any()
    assert np.isfinite(np.delete(found, 5, 1)).all()


@pytest.mark.parametrize("isa", isas())
def test_layer_norm(isa: str) -> None:
    """A row with a mean of 1000 deviations too: two passes, so only the input's own rounding is left."""
    for d in (1, 7, 16, 60, 768, 1001):
        x, weight, bias = draw((4, d), 1), draw((d,), 2), draw((d,), 3)
        x[1] += 1000
        x[2] *= 1e-20
        x[3] *= 1e10
        exact = x.astype(np.float64)
        centred = exact - exact.mean(1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        spread = np.abs(exact).max(1, keepdims=True) / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        error = (8 + d / 8) * EPS * (spread + np.abs(normal) + 1) * np.abs(weight) + 4 * EPS * np.abs(bias)
        found = layer_norm(isa, x, weight, bias, 1e-5)
        assert np.all(np.abs(found - (normal * weight + bias)) <= error), d
    x[1, 5] = np.nan
    assert np.isnan(layer_norm(isa, x, weight, bias, 1e-5)).all(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", [Format.F32, Format.BF16], ids=lambda f: f.name)
def test_attention(isa: str, format: Format) -> None:
    """bfloat16: keys, values, queries and weights are rounded, each by at most BF16 of itself."""
    for n_positions, d_head in ((1, 4), (33, 16), (70, 20), (129, 64), (40, 80), (65, 128)):
        qkv = draw((3, n_positions, d_head), n_positions)
        expected = causal_attention(qkv.astype(np.float64), 0.3)
        found = attention(isa, format, qkv, 0.3, 0)
        scores = 0.3 * np.abs(qkv[0]).max() * np.abs(qkv[1]).max() * d_head
        relative = 3e-6 * scores if format is Format.F32 else 2 * BF16 * np.sqrt(scores) + 2 * BF16
        assert np.all(np.abs(found - expected) <= relative * np.abs(qkv[2]).max()), (n_positions, d_head)
        for n_first in (1, 5, n_positions):
            assert np.array_equal(attention(isa, format, qkv, 0.3, n_first), found), "chunks change bits"


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("format", [Format.F32, Format.BF16], ids=lambda f: f.name)
def test_the_future_stays_out_of_attention_even_when_it_is_not_finite(isa: str, format: Format) -> None:
    qkv = draw((3, 71, 20), 1)
    clean = attention(isa, format, qkv, 0.3, 0)
    for at in (9, 10, 64):
        for value in (np.nan, np.inf):
            planted = qkv.copy()
            planted[1:, at] = value
            found = attention(isa, format, planted, 0.3, 0)
            assert np.array_equal(found[:at], clean[:at])
            assert np.isnan(found[at:]).all()


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_packed_weights_stand_for_what_was_packed(format: Format) -> None:
    weight = draw((70, 100), 1)
    error = np.abs(Weights.pack(format, weight).exact - weight)
    assert (
        error.max()
        <= {
            Format.F32: 0.0,
            Format.BF16: BF16 * np.abs(weight).max(),
            Format.INT8: (np.abs(weight).max(1, keepdims=True) / 254 * 1.0001).max(),
            Format.INT4: np.abs(weight).max() / 7,
        }[format]
    )
    again, _ = native.pack(format, weight, n_threads=3)
    assert np.array_equal(again, native.pack(format, weight)[0]), "threads must not change the bytes"


def test_int4_scales_are_searched_and_heed_the_importance() -> None:
    """Against rounding to the largest value alone; and errors move to where the input is small."""
    weight = draw((64, 320), 1)
    groups = weight.reshape(64, -1, 32)
    scale = np.abs(groups).max(2, keepdims=True) / 7
    plain = np.square(np.clip(np.rint(groups / scale), -8, 7) * scale - groups).sum()
    searched = np.square(Weights.pack(Format.INT4, weight).exact - weight).sum()
    assert searched < 0.85 * plain
    importance = np.tile(np.float32([100.0] * 4 + [0.01] * 28), 10)
    panels, scales = native.pack(Format.INT4, weight, importance)
    heeded = np.square(native.unpack(Format.INT4, panels, scales, *weight.shape) - weight)
    unheeded = np.square(Weights.pack(Format.INT4, weight).exact - weight)
    assert (heeded * importance).sum() < 0.8 * (unheeded * importance).sum()


def test_the_checks_can_fail() -> None:
    """Planted: one bit of one packed weight; a sum in another order."""
    w, x = Weights.pack(Format.INT8, draw((64, 40), 1)), draw((2, 40), 2)
    w.panels[77] ^= 16
    seen = inputs_as_seen("scalar", Format.INT8, x)
    error = np.abs(product("scalar", w, x) - seen @ w.exact.T)
    assert not np.all(error <= bound("scalar", Format.INT8, w, seen))
    w = Weights.pack(Format.F32, draw((64, 512), 1))
    turned = Weights.pack(Format.F32, draw((64, 512), 1)[:, ::-1])
    x = draw((2, 512), 2)
    backwards = product("scalar", turned, np.ascontiguousarray(x[:, ::-1]))
    assert not np.array_equal(product("scalar", w, x), backwards)
