"""A modelled run as one HTML file that needs nothing else: no script, no font, no other address."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from wafergpt.units import format_bytes, format_count, format_duration, format_figure
from wafergpt.wafer.report import PARTS, Report, format_seconds

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 0.9em; } td, th { padding: 0.2em 0.8em; text-align: left; }
th { border-bottom: 1px solid #888; } tr:nth-child(even) { background: #f4f4f4; } .n { text-align: right; }
img { max-width: 100%; display: block; } figure { margin: 1.5em 0; } figcaption, .note { color: #555; }
.wide { overflow-x: auto; } .bar { display: flex; height: 1.6em; margin: 0.5em 0; border: 1px solid #888; }
.bar div { height: 100%; } .key { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.4em; }
"""
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with a title and a sentence about it; `name` is that of its file, without `.png`."""

    name: str
    title: str
    note: str
    png: bytes


def document(title: str, sections: Iterable[str]) -> str:
    """The whole file; `sections` are HTML, the title is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """A note, escaped."""
    return f'<p class="note">{escape(text)}</p>'


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A heading and a table, all escaped; columns in `numbers` stand right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    top = f"<tr>{cells(head, 'th')}</tr>\n" if head else ""
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2>\n<div class="wide"><table>\n{top}{body}\n</table></div>'


def pictures(shown: Iterable[Picture]) -> str:
    """Figures with their captions, the images inside."""
    return "\n".join(
        f"<h2>{escape(one.title)}</h2>\n<figure>"
        f'<img alt="{escape(one.title)}" src="data:image/png;base64,{base64.b64encode(one.png).decode()}">'
        f"<figcaption>{escape(one.note)}</figcaption></figure>"
        for one in shown
    )


def report_page(
    report: Report, shown: Sequence[Picture] = (), notes: Sequence[str] = (), more: Sequence[str] = ()
) -> str:
    """A report with its figures and every number that it stands on; `more`: HTML before the figures."""
    title = f"{report.description or 'A run'} on {report.systems} x {report.arch}, modelled"
    lead = "Every figure here is modelled, not measured on a wafer, unless it says measured."
    return document(
        title,
        [paragraph(text) for text in (lead, *notes)]
        + [
            _numbers(report),
            _breakdown(report),
            *more,
            pictures(shown),
            _operators(report),
            _unmapped(report),
        ]
        + [_assumptions(report)],
    )


def _numbers(report: Report) -> str:
    sram = report.sram_bytes_per_pe
    rows = [
        ("execution", f"{report.execution}, {report.fidelity} fidelity"),
        ("time, modelled", f"{format_seconds(report.modelled_s)} = {report.cycles:,.0f} cycles at "
                           f"{report.clock_hz / 1e9:g} GHz"),
        (
            "rate, modelled",
            f"{format_figure(report.samples_per_s)} samples/s, {format_figure(report.tokens_per_s)} tokens/s",
        ),
        ("share of peak, modelled", f"{report.share_of_peak:.2%}"),
        ("fits", f"{'yes' if report.fits else 'NO'}: {report.reason}"),
        ("SRAM per PE, modelled", f"{format_bytes(sram.get('used', 0.0))} used, "
                                  f"{format_bytes(sram.get('largest', 0.0))} in the fullest"),
        ("energy, modelled", f"{format_figure(report.energy_j)} J"),
    ]  # fmt: skip
    if report.host_measured_s is not None:
        rows.append(("the host took, measured", format_duration(report.host_measured_s)))
    if report.modelled_speedup is not None:
        rows.append(("speed-up over the host, modelled", f"{format_figure(report.modelled_speedup)} x"))
    return table("The numbers", (), rows)


def _breakdown(report: Report) -> str:
    """A bar of shares and a table of the same, both with the parts' colours."""
    total = max(sum(report.breakdown_cycles.values()), 1e-30)
    shares = [report.breakdown_cycles.get(part, 0.0) / total for part in PARTS]
    bar = "".join(
        f'<div style="width:{share:.3%};background:{colour}"></div>'
        for share, colour in zip(shares, _COLOURS, strict=True)
    )
    rows = "\n".join(
        f'<tr><td><span class="key" style="background:{colour}"></span>{part.replace("_", " ")}</td>'
        f"<td class=n>{report.breakdown_cycles.get(part, 0.0):,.0f}</td><td class=n>{share:.1%}</td></tr>"
        for part, share, colour in zip(PARTS, shares, _COLOURS, strict=True)
    )
    head = "<tr><th>part</th><th class=n>cycles</th><th class=n>share</th></tr>"
    return (
        f'<h2>Where the cycles go, modelled</h2>\n<div class="bar">{bar}</div>\n'
        f"<table>\n{head}\n{rows}\n</table>"
    )


def _operators(report: Report) -> str:
    if not report.per_op:
        return ""
    total = max(report.cycles, 1e-30)
    rows = [
        (
            *(op.name, op.kind, op.phase, op.shapes, f"{op.count:,}", format_count(op.n_flops)),
            *(f"{op.cycles:,.0f}", f"{op.cycles / total:.1%}"),
        )
        for op in sorted(report.per_op, key=lambda op: -op.cycles)
    ]
    head = ("operator", "kind", "phase", "shapes", "times", "FLOPs", "cycles", "share")
    return table("Operators, modelled", head, rows, (4, 5, 6, 7))


def _unmapped(report: Report) -> str:
    if not report.unmapped:
        return ""
    rows = [(one.name, one.shapes, f"{one.count:,}", format_seconds(one.host_s)) for one in report.unmapped]
    return table(
        "On the host: operators without a mapping", ("operator", "shapes", "times", "time"), rows, (2, 3)
    )


def _assumptions(report: Report) -> str:
    if not report.assumptions:
        return ""
    rows = [(a.name, f"{a.value:,.6g}", a.unit, a.evidence, a.source) for a in report.assumptions]
    return table("What it stands on", ("number", "value", "unit", "evidence", "source"), rows, (1,))
