"""Rounding to the wafer's formats, against NumPy and against the list of all numbers of a format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wafergpt.devices.numerics import FORMATS, Format, format_of
from wafergpt.errors import ConfigError

SMALL = ("cb16", "fp16", "bf16")


def all_numbers(form: Format) -> NDArray[np.float64]:
    """The finite numbers >= 0 by their bit patterns, ascending: exponent field, then mantissa."""
    codes = np.arange((2**form.exponent_bits - 1) * 2**form.mantissa_bits)
    field, mantissa = codes >> form.mantissa_bits, codes % 2**form.mantissa_bits
    fraction = mantissa / 2.0**form.mantissa_bits
    bias = 2 ** (form.exponent_bits - 1) - 1
    return np.where(field == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (field - bias))


def nearest(form: Format, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """By search in the list; the code of a number is its index, so an even code is an even mantissa."""
    numbers = all_numbers(form)
    step = numbers[-1] - numbers[-2]
    grid = np.append(
        numbers, numbers[-1] + step
    )  # the next one would be there: what rounds to it is infinite
    size = np.minimum(np.abs(x), grid[-1])
    above = np.clip(np.searchsorted(grid, size), 1, len(grid) - 1)
    low, high = size - grid[above - 1], grid[above] - size  # exact: neighbours differ by less than a factor 2
    up = (high < low) | ((high == low) & (above % 2 == 0))
    found = np.where(up, above, above - 1)
    values = np.where(found == len(grid) - 1, np.inf, grid[found])
    return np.copysign(values, x)


def boundaries(form: Format) -> NDArray[np.float64]:
    """Every number, every middle of neighbours, what lies beside a middle in float64, beyond the largest."""
    numbers = all_numbers(form)
    middles = (numbers[1:] + numbers[:-1]) / 2
    beyond = form.largest * np.array([1.0 + 2.0 ** -(form.mantissa_bits + 2), 2.0, 1e3])
    edge = form.largest + (numbers[-1] - numbers[-2]) / 2  # the middle to the number that is not there
    parts = [numbers, middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf), beyond, [edge]]
    size = np.concatenate(parts)
    return np.concatenate([size, -size])


def rounded(form: Format, x: NDArray[np.floating]) -> NDArray[np.float64]:
    return form.round(torch.from_numpy(x)).double().numpy()


def same_bits(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool(np.array_equal(a.view(np.int64), b.view(np.int64)))


@pytest.mark.parametrize("name", SMALL)
def test_every_number_and_every_boundary_float64(name: str) -> None:
    form = FORMATS[name]
    x = boundaries(form)
    assert same_bits(rounded(form, x), nearest(form, x))


@pytest.mark.parametrize("name", SMALL)
def test_every_number_and_every_boundary_float32(name: str) -> None:
    form = FORMATS[name]
    with np.errstate(over="ignore"):
        x = boundaries(form).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    x = x[np.isfinite(x)]
    assert same_bits(rounded(form, x), nearest(form, x.astype(np.float64)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fp16_is_numpys(dtype: type[np.floating]) -> None:
    x = boundaries(FORMATS["fp16"]).astype(dtype)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float64)
    assert same_bits(rounded(FORMATS["fp16"], x), expected)
    patterns = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = patterns[np.isfinite(patterns)].astype(dtype)
    assert same_bits(rounded(FORMATS["fp16"], finite), finite.astype(np.float64))


def test_bf16_is_numpys_on_every_pattern() -> None:
    """bfloat16 is the upper half of float32: add half a unit, ties by the last kept bit, and cut."""
    high = np.arange(65536, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        bits = high | np.uint32(low)
        x = bits.view(np.float32)
        keep = np.isfinite(x)
        expected = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        found = FORMATS["bf16"].round(torch.from_numpy(x.copy())).numpy().view(np.uint32)
        assert np.array_equal(found[keep], expected[keep])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_not_a_number_stays(name: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    found = FORMATS[name].round(x)
    assert found[:2].tolist() == [torch.inf, -torch.inf] and found[2].isnan()
    assert torch.signbit(found[3])


def test_cb16_has_six_exponent_and_nine_mantissa_bits() -> None:
    numbers = all_numbers(FORMATS["cb16"])
    assert len(numbers) == 63 * 512
    assert numbers[-1] == FORMATS["cb16"].largest == 2.0**32 - 2.0**22
    assert numbers[1] == FORMATS["cb16"].smallest == 2.0**-39


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_any_float64(name: str, values: list[float]) -> None:
    x = np.array(values)
    finite = np.where(np.isfinite(x), x, 1.0)
    assert same_bits(rounded(FORMATS[name], finite), nearest(FORMATS[name], finite))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.floats(width=32, allow_nan=False))
def test_once_is_enough_and_signs_mirror(name: str, value: float) -> None:
    x = torch.tensor([value, -value])
    once = FORMATS[name].round(x)
    assert torch.equal(FORMATS[name].round(once), once)
    assert once[0] == -once[1]


def test_integers_and_the_given_tensor_stay() -> None:
    ids = torch.tensor([70_001, 3])
    assert torch.equal(FORMATS["fp16"].round(ids), ids)
    x = torch.tensor([1.0 + 2.0**-20])
    for form in FORMATS.values():
        assert form.round(x) is not x
    assert x.item() == 1.0 + 2.0**-20


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_strides_and_type_stay(name: str, dtype: torch.dtype) -> None:
    for shape in ((0, 3), (), (4, 5, 7_000)):
        x = torch.ones(shape, dtype=dtype).transpose(0, -1) if shape else torch.ones((), dtype=dtype)
        found = FORMATS[name].round(x)
        assert (found.shape, found.dtype) == (x.shape, x.dtype)
        assert not x.numel() or found.stride() == x.stride()


def test_the_oracle_tells_formats_apart() -> None:
    """Planted: ties away from zero, truncation, or a mantissa bit more are all seen."""
    form = FORMATS["cb16"]
    x = boundaries(form)
    grid = np.exp2(np.maximum(np.floor(np.log2(np.abs(x), where=x != 0, out=np.full_like(x, -60))), -30) - 9)
    away = np.copysign(np.floor(np.abs(x) / grid + 0.5) * grid, x)
    cut = np.trunc(x / grid) * grid
    wider = Format(name="x", exponent_bits=6, mantissa_bits=10, torch_dtype=None)
    for wrong in (away, cut, rounded(wider, x)):
        assert not same_bits(wrong, nearest(form, x))


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigError, match=r"numerics 'fp61' is unknown.*did you mean"):
        format_of("fp61")
