"""What a modelled run gives: one result type for both fidelities, as numbers, as JSON and as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wafergpt.errors import DataError
from wafergpt.units import format_bytes, format_duration, format_figure
from wafergpt.wafer.arch import Quantity

PARTS = ("compute", "weight_streaming", "fabric", "reduction", "host")


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A number that the model used, and how it is known."""

    name: str
    value: float
    unit: str
    evidence: str
    source: str

    @classmethod
    def of(cls, name: str, quantity: Quantity) -> Assumption:
        """The named `quantity` as an assumption."""
        return cls(
            name=name,
            value=quantity.value,
            unit=quantity.unit,
            evidence=quantity.evidence.value,
            source=quantity.source,
        )


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """One row: all operators of one name, kind, phase and shape. `cycles` is 0 for what the host ran.

    `n_bytes`: read and written by all of them; `weight_bytes`: of them, those of parameters.
    """

    name: str
    kind: str
    phase: str
    shapes: str
    count: int
    n_flops: float
    cycles: float
    n_bytes: float = 0.0
    weight_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Unmapped:
    """An operator without a mapping: it runs on the host, `host_s` seconds in all (modelled)."""

    name: str
    shapes: str
    count: int
    host_s: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """A modelled region or run. Times in seconds, cycles of the clock `clock_hz`, bytes per PE, joules.

    `breakdown_cycles` has the keys of `PARTS` and sums to `cycles`; `share_of_peak` is of all systems' dense
    fp16 peak; `sram_bytes_per_pe` has the keys `used` (mean over PEs) and `largest` (the fullest PE);
    `host_measured_s` is what the host took for the same region, if it was measured.
    """

    fidelity: str
    arch: str
    execution: str
    systems: int
    cycles: float
    clock_hz: float
    modelled_s: float
    breakdown_cycles: Mapping[str, float]
    share_of_peak: float
    samples_per_s: float
    tokens_per_s: float
    sram_bytes_per_pe: Mapping[str, float]
    fits: bool
    reason: str
    energy_j: float
    host_measured_s: float | None = None
    modelled_speedup: float | None = None
    description: str = ""
    unmapped: tuple[Unmapped, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    per_op: tuple[OpCost, ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """The report as a JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises DataError for anything else."""
        try:
            tree: dict[str, Any] = json.loads(text)
            tree["unmapped"] = tuple(Unmapped(**row) for row in tree["unmapped"])
            tree["assumptions"] = tuple(Assumption(**row) for row in tree["assumptions"])
            tree["per_op"] = tuple(OpCost(**row) for row in tree["per_op"])
            report = cls(**tree)
            for part in (report, *report.unmapped, *report.assumptions, *report.per_op):
                _check_types(part)
            if report.systems < 1 or report.clock_hz <= 0:
                raise ValueError("systems and clock_hz must be above zero")
            return report
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"not a wafer report: {' '.join(str(error).split())[:120]}") from None

    def lines(self) -> list[str]:
        """The report for a reader, line by line; everything in it is modelled unless it says measured."""
        speedup = self.modelled_speedup
        ratio = "" if speedup is None else f", modelled speed-up {format_figure(speedup)}x"
        host = (
            "" if self.host_measured_s is None else f"host, measured: {format_duration(self.host_measured_s)}"
        )
        verdict = "fits" if self.fits else "does NOT fit"
        found = [
            f"modelled run on {self.systems} x {self.arch} ({self.execution}, {self.fidelity} fidelity)"
            + (f": {self.description}" if self.description else ""),
            f"modelled time: {format_seconds(self.modelled_s)} = {self.cycles:,.0f} cycles "
            f"at {self.clock_hz / 1e9:g} GHz",
            f"modelled rate: {format_figure(self.samples_per_s)} samples/s, "
            f"{format_figure(self.tokens_per_s)} tokens/s, "
            f"{self.share_of_peak:.2%} of peak",
            "modelled cycles: " + ", ".join(self._shares()),
            f"modelled SRAM per PE: {format_bytes(self.sram_bytes_per_pe.get('used', 0.0))} used, "
            f"{format_bytes(self.sram_bytes_per_pe.get('largest', 0.0))} in the fullest",
            f"{verdict}: {self.reason}",
            f"modelled energy: {format_figure(self.energy_j)} J",
        ]
        found += [host + ratio] if host else []
        found += [
            f"on the host, no mapping: {u.name} {u.shapes} x {u.count}, {format_seconds(u.host_s)}"
            for u in self.unmapped
        ]
        found += [f"{a.evidence}: {a.name} = {a.value:.6g} {a.unit} ({a.source})" for a in self.assumptions]
        return found

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _shares(self) -> list[str]:
        total = max(self.cycles, 1e-30)
        return [f"{name} {self.breakdown_cycles.get(name, 0.0) / total:.1%}" for name in PARTS]


_TYPES: dict[str, Any] = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}


def _check_types(part: Any) -> None:
    """Raise TypeError or ValueError for a field that does not hold what it should: files are not trusted."""
    for one in fields(part):
        value: Any = getattr(part, one.name)
        kind = str(one.type)
        if kind.startswith("tuple") or (value is None and kind.endswith("| None")):
            continue
        if not kind.startswith("Mapping"):
            _check_type(one.name, value, kind.removesuffix(" | None"))
        elif isinstance(value, dict):
            for each in value.values():
                _check_type(one.name, each, "float")
        else:
            raise TypeError(f"{one.name} is not a table")


def _check_type(name: str, value: Any, kind: str) -> None:
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "bool"):
        raise TypeError(f"{name} is not of type {kind}")
    if kind == "float" and not math.isfinite(value):
        raise ValueError(f"{name} is not finite")


def format_seconds(value: float) -> str:
    """Seconds with a prefix that suits a wafer: `0.00012 -> '120 us'`."""
    if value >= 1:
        return format_duration(value)
    return f"{value * 1e3:.4g} ms" if value >= 1e-3 else f"{value * 1e6:.4g} us"
