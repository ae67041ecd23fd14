"""What the demo says of the wafer: its own model and the seven published sizes, all modelled.

Layer: beside `api`. The wafer computes nothing here: the model's operators are described and costed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from wafergpt.model.config import GPTConfig
from wafergpt.model.family import FAMILY
from wafergpt.recipes.cerebras_gpt import RECIPES
from wafergpt.units import format_bytes, format_count, format_duration
from wafergpt.wafer import html
from wafergpt.wafer.analytic.plan import Plan, plan
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.report import PARTS, Report, format_seconds
from wafergpt.wafer.workload import TransformerShape, describe_transformer

SIZES = tuple(name for name in RECIPES if not name.endswith("-muP"))
NAME = "the demo's model"
NOTE = (
    "Modelled: nothing here ran on a wafer. The speed-up compares the modelled step with the steps that were"
    " measured on this machine. So small a model leaves most of a wafer idle."
)
OWN_HEAD = ("weights", "one step", "tokens/s", "speed-up", "SRAM/PE", "cycles")
SIZES_HEAD = ("model", "parameters", "trains", "days", "tokens/s", "infers", "decode tokens/s")


@dataclass(frozen=True, kw_only=True)
class WaferView:
    """Reports of one training step of the demo's model, weights streamed and resident; the sizes' plans."""

    steps: tuple[Report, ...]
    sizes: tuple[Plan, ...]


def look(model: GPTConfig, *, batch_size: int, step_s: float) -> WaferView:
    """The view of a model whose step of `batch_size` sequences took this machine `step_s` seconds."""
    shape = TransformerShape.of(NAME, Shape.of(model), model.max_seq_len)
    step = describe_transformer(shape, batch=batch_size, seq_len=model.max_seq_len)
    return WaferView(
        steps=tuple(
            price(step, execution=execution, host_s=step_s) for execution in ("streaming", "resident")
        ),
        sizes=tuple(_plan(name) for name in SIZES),
    )


def _plan(name: str) -> Plan:
    config = FAMILY[name].config
    return plan(name, Shape.of(config), seq_len=config.max_seq_len)


def own_rows(view: WaferView) -> list[tuple[str, ...]]:
    """A row for each report, under `OWN_HEAD`."""
    return [
        (
            report.execution,
            format_seconds(report.modelled_s),
            f"{report.tokens_per_s:,.0f}",
            f"{report.modelled_speedup:,.3g} x" if report.modelled_speedup else "",
            f"{format_bytes(report.sram_bytes_per_pe['used'])}, {'fits' if report.fits else 'does NOT fit'}",
            _shares(report),
        )
        for report in view.steps
    ]


def _shares(report: Report) -> str:
    shares = {_SHORT.get(part, part): report.breakdown_cycles[part] / report.cycles for part in PARTS}
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)


_SHORT = {"weight_streaming": "weights in", "reduction": "sums"}


def size_rows(view: WaferView) -> list[tuple[str, ...]]:
    """A row for each published size, under `SIZES_HEAD`: its compute-optimal run on one system."""
    return [
        (
            one.name,
            format_count(one.n_parameters),
            "yes" if one.fits else "no",
            f"{one.run_s / 86400:,.3g}",
            f"{one.samples_per_s * one.seq_len:,.0f}",
            "yes" if one.inference_fits else "no",
            f"{one.decode_tokens_per_s:,.0f}",
        )
        for one in view.sizes
    ]


def tables(view: WaferView) -> tuple[Table, Table]:
    """Both tables for the terminal."""
    return (
        _table("On a WSE-2, modelled: one training step of this model", OWN_HEAD, own_rows(view)),
        _table(
            "On one WSE-2, modelled: whether the published sizes fit, their compute-optimal run, decoding",
            SIZES_HEAD,
            size_rows(view),
        ),
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(view: WaferView, page: str) -> str:
    """The section of `report.md`; `page`: the HTML file."""
    measured = view.steps[0].host_measured_s or 0.0
    return (
        f"## What a wafer would make of it\n\n{NOTE} Here a step took {format_duration(measured)}, measured."
        f" [{page}]({page}) has the figures and every assumption.\n\n"
        + _markdown_table(OWN_HEAD, own_rows(view))
        + "\nOne WSE-2, modelled: whether the published sizes fit, their compute-optimal run, decoding:\n\n"
        + _markdown_table(SIZES_HEAD, size_rows(view))
    )


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(view: WaferView, shown: Sequence[html.Picture], note: str = "") -> str:
    """The HTML file: the streamed step's report, the tables, the figures."""
    more = (
        html.table("One training step, modelled", OWN_HEAD, own_rows(view)),
        html.table("The published sizes on one WSE-2, modelled", SIZES_HEAD, size_rows(view), (3, 4, 6)),
    )
    return html.report_page(view.steps[0], shown, [NOTE, *filter(None, [note])], more)
