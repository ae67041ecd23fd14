"""Units: constants and formatters for bytes, seconds, counts and FLOPs (standard library only)."""

from __future__ import annotations

from wafergpt.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_COUNT_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}


def format_bytes(n_bytes: float) -> str:
    """`1536 -> '1.5 KiB'` (binary prefixes)."""
    for suffix, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n_bytes) >= unit:
            return f"{n_bytes / unit:.1f} {suffix}"
    return f"{n_bytes:.0f} B"


def format_figure(value: float) -> str:
    """`311_060.2 -> '311,100'`, `0.25 -> '0.25'` (four significant digits, no exponent below 1e15)."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e15 else f"{rounded:.4g}"


def format_count(count: float) -> str:
    """`111_050_496 -> '111.1M'` (decimal prefixes, three to four significant digits)."""
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(count) >= unit:
            return f"{count / unit:.4g}{suffix}"
    return f"{count:.4g}"


def format_flops(flops: float, per_second: bool = False) -> str:
    """`2.6e18 -> '2.6 EFLOP'`; with `per_second`, `'2.6 EFLOP/s'`."""
    tail = "/s" if per_second else ""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(flops) >= unit:
            return f"{flops / unit:.3g} {prefix}FLOP{tail}"
    return f"{flops:.3g} FLOP{tail}"


def format_duration(duration_s: float) -> str:
    """`4000 -> '1h 06m'`, `75 -> '1m 15s'`, `0.25 -> '0.25s'`."""
    if duration_s < 10:
        return f"{duration_s:.2f}s"
    total_s = round(duration_s)
    if total_s < 60:
        return f"{total_s}s"
    minutes, seconds = divmod(total_s, 60)
    if minutes < 60:
        return f"{minutes}m {seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes:02d}m"
    return f"{total_s / 86400:.1f} days"


def parse_count(text: str) -> float:
    """`'8M' -> 8e6`, `'1.3B' -> 1.3e9`, `'1e16' -> 1e16`, `'4_000' -> 4000.0`.

    Raises ConfigError when the text is not a positive number with an optional suffix K, M, B, T, P, E.
    """
    cleaned = text.strip().replace("_", "").replace(",", "")
    suffix = cleaned[-1:].lower()
    digits = cleaned[:-1] if suffix in _COUNT_SUFFIXES and suffix else cleaned
    try:
        value = float(digits) * _COUNT_SUFFIXES[suffix if digits is not cleaned else ""]
    except ValueError:
        raise ConfigError(f"'{text}' is not a count; write for example 8M, 1.3B or 1e16") from None
    if not value > 0 or value == float("inf"):
        raise ConfigError(f"'{text}' is not a positive, finite count")
    return value
