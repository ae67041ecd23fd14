"""The published rows that the effective parameters are fitted to, and how far the forms are from each."""

from __future__ import annotations

from pathlib import Path

from wafergpt.wafer.analytic.parameters import PARAMETERS, RELEASE_EFFICIENCY
from wafergpt.wafer.analytic.predict import error_of, predict
from wafergpt.wafer.analytic.rows import Row, read_rows
from wafergpt.wafer.arch import Evidence

PATH = Path(__file__).with_name("calibration.csv")
BAR = 0.10  # every calibration row within this error


def rows() -> list[Row]:
    """The calibration rows, sources included."""
    return read_rows(PATH)


def errors() -> list[tuple[Row, float, float, float]]:
    """(row, published, modelled, error max(p / v, v / p) - 1) of every calibration row."""
    found = []
    for row in rows():
        published, modelled = float(row.text("value")), predict(row).predicted
        assert modelled is not None and modelled is not False
        found.append((row, published, float(modelled), error_of(float(modelled), published)))
    return found


def error_table() -> str:
    """The errors as a Markdown table."""
    lines = ["| row | group | what | published | modelled | error |", "|---|---|---|---|---|---|"]
    for row, published, modelled, error in errors():
        what = " ".join(filter(None, (row.text("model"), row.text("shape_mkn"), row.text("grid"))))
        batch = f", batch {row.text('batch')}" if row.text("batch") else ""
        lines.append(
            f"| {row.text('id')} | {row.text('group')} | {what}{batch} "
            f"| {published:.5g} {row.text('unit')} | {modelled:.5g} | {error:.1%} |"
        )
    return "\n".join(lines) + "\n"


def parameter_table() -> str:
    """Every parameter of the closed forms as a Markdown table."""
    lines = ["| parameter | value | how known | meaning |", "|---|---|---|---|"]
    named = PARAMETERS | {f"efficiency of release {n}": q for n, q in RELEASE_EFFICIENCY.items()}
    for name, q in named.items():
        lines.append(f"| `{name}` | {q.value:g} {q.unit} | {q.evidence.value} | {q.source} |")
    return "\n".join(lines) + "\n"


def n_fitted() -> int:
    """Parameters that were adjusted to the rows."""
    return sum(q.evidence is Evidence.FITTED for q in PARAMETERS.values())
