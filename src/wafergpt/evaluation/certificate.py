"""The parity certificate: what was compared with what, what was found, and against which bounds.

It is written beside exported weights, and holds file names but no folders, so that it can be published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.config import from_dict, to_dict
from wafergpt.errors import ConfigError, DataError
from wafergpt.evaluation.parity import Bounds, Comparison

FILE_NAME = "parity.json"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison. `sha256` maps the names of its weights files to their hashes."""

    name: str
    format: str
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ArrayCheck:
    """What reading the written arrays back gave: every one is `exact` or `rounded` to what was asked for."""

    rounding: str  # "float32": none
    n_exact: int
    n_rounded: int
    wrong: tuple[str, ...] = ()  # neither


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A difference in the computation that the target format forces, measured on its own."""

    what: str
    found: Comparison
    bounds: Bounds


@dataclass(frozen=True, kw_only=True)
class HeldOutRise:
    """Loss of both on the same held-out text."""

    n_tokens: int
    source_bits_per_byte: float
    target_bits_per_byte: float
    max_rise_percent: float

    @property
    def percent(self) -> float:
        """By how much the target is worse."""
        return 100 * (self.target_bits_per_byte / self.source_bits_per_byte - 1)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """`problems` is empty exactly when source and target are the same within the bounds."""

    source: Subject
    target: Subject
    found: Comparison
    bounds: Bounds
    arrays: ArrayCheck | None = None  # None: two existing models were compared
    departures: tuple[Departure, ...] = ()
    held_out: HeldOutRise | None = None  # measured for quantized models on request
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str]

    @property
    def same(self) -> bool:
        """The verdict."""
        return not self.problems

    def to_json(self) -> str:
        """Plain JSON with the verdict and the relative difference spelled out; ends in a newline."""
        data: dict[str, Any] = to_dict(self)
        data["found"]["relative_logit_diff"] = self.found.relative_logit_diff
        return json.dumps({"same": self.same, **data}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """The inverse of `to_json`. Raises DataError for anything else."""
        try:
            data = json.loads(text)
            verdict, relative = data.pop("same"), data["found"].pop("relative_logit_diff")
            certificate = from_dict(cls, data)
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a parity certificate: {error}") from None
        if (verdict, relative) != (certificate.same, certificate.found.relative_logit_diff):
            raise DataError("not a parity certificate: its verdict does not follow from its figures")
        return certificate

    def lines(self) -> list[str]:
        """What a person wants to know, one line each."""
        found = self.found
        lines = [
            f"compared {found.n_positions} positions of {self.source.name} and {self.target.name}",
            f"largest difference of {found.compared}: {found.max_logit_diff:.3g}"
            f" ({found.relative_logit_diff:.2g} of the largest)",
            f"most likely token the same: {found.top1_agreement:.2%}",
            f"KL in nats: mean {found.mean_kl:.3g}, largest {found.max_kl:.3g}",
        ]
        if self.arrays is not None:
            rounded = f", {self.arrays.n_rounded} rounded to {self.arrays.rounding}"
            lines.append(
                f"weights read back: {self.arrays.n_exact} exact{rounded if self.arrays.n_rounded else ''}"
            )
        lines += [
            f"{d.what}: mean KL {d.found.mean_kl:.3g} nats,"
            f" most likely token the same: {d.found.top1_agreement:.2%}"
            for d in self.departures
        ]
        if self.held_out is not None:
            rise = self.held_out
            lines.append(
                f"held-out bits/byte: {rise.source_bits_per_byte:.4f}, then {rise.target_bits_per_byte:.4f}"
                f" ({rise.percent:+.3f} %, at most {rise.max_rise_percent:g} %)"
            )
        rounding = self.arrays is not None and self.arrays.n_rounded > 0
        verdict = "the same" + (" but for the rounding" if rounding else "")
        if not self.same:
            verdict = f"NOT the same: {'; '.join(self.problems)}"
        return [*lines, f"verdict: {verdict} ({self.bounds.reason})"]


def certificate_path(target: Path) -> Path:
    """`parity.json` inside a folder, `NAME.parity.json` beside a file."""
    return target / FILE_NAME if target.is_dir() else target.with_name(f"{target.name}.{FILE_NAME}")
