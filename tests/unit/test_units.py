"""Units: what people read, and what they may write."""

from __future__ import annotations

import math

import pytest

from wafergpt import units
from wafergpt.errors import ConfigError


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (48 * units.KIB, "48.0 KiB"),
        (3 * units.MIB, "3.0 MiB"),
        (-2 * units.GIB, "-2.0 GiB"),
    ],
)
def test_format_bytes(n_bytes: float, text: str) -> None:
    assert units.format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (111_050_496, "111.1M"), (1.3e9, "1.3B"), (2.5e12, "2.5T")],
)
def test_format_count(count: float, text: str) -> None:
    assert units.format_count(count) == text


def test_format_flops() -> None:
    assert units.format_flops(2.6e18) == "2.6 EFLOP"
    assert units.format_flops(1.234e12, per_second=True) == "1.23 TFLOP/s"
    assert units.format_flops(12) == "12 FLOP"


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.25, "0.25s"),
        (10, "10s"),
        (59.6, "1m 00s"),
        (75, "1m 15s"),
        (3600, "1h 00m"),
        (4000, "1h 06m"),
        (400_000, "4.6 days"),
    ],
)
def test_format_duration(duration_s: float, text: str) -> None:
    assert units.format_duration(duration_s) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8M", 8e6),
        ("1.3B", 1.3e9),
        ("1.3b", 1.3e9),
        ("1e16", 1e16),
        ("4_000", 4000.0),
        ("4,000", 4000.0),
        (" 2 ", 2.0),
        ("50k", 5e4),
        ("3T", 3e12),
        ("2E", 2e18),
    ],
)
def test_parse_count(text: str, value: float) -> None:
    assert units.parse_count(text) == pytest.approx(value, rel=1e-15)  # one rounding of digits x suffix


@pytest.mark.parametrize("text", ["", "M", "-8M", "0", "8 apples", "nan", "inf", "1e400", "8MM"])
def test_parse_count_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        units.parse_count(text)


def test_counts_read_back_what_they_print() -> None:
    for count in (1.0, 12.0, 1500.0, 2.5e6, 1.3e9, 4e12):
        assert units.parse_count(units.format_count(count)) == pytest.approx(count, rel=1e-15)


def test_figures_have_four_digits_and_no_exponent() -> None:
    values = (311_060.2, 9999.6, 999.96, 1234.5, 0.25, 0.00044521, 0.0, -25_340.0, 1.6e16)
    wanted = ["311,100", "10,000", "1,000", "1,234", "0.25", "0.0004452", "0", "-25,340", "1.6e+16"]
    assert [units.format_figure(value) for value in values] == wanted
    assert units.format_figure(math.inf) == "inf"
