"""Figures of a modelled run: where operators lie, the roofline, the scaling curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wafergpt.errors import DataError
from wafergpt.units import format_flops
from wafergpt.wafer.analytic.layout import OPERATORS, Region, fits
from wafergpt.wafer.arch import WSE2, Arch
from wafergpt.wafer.plots.canvas import COLOURS, Figure, Patch, Rectangle, new_figure, outline_mesh
from wafergpt.wafer.report import OpCost, Report

_BLOCK_LABELS = 100  # blocks up to which each one's number is written


def placement_map(regions: Sequence[Region], name: str, arch: Arch = WSE2) -> Figure:
    """Which operator of which block has which PEs, for a model that is on the wafer as a whole."""
    verdict = "" if fits(regions, arch) else " (does NOT fit in its SRAM)"
    figure = new_figure(900, f"{name} laid out on {arch.name}{verdict}: modelled, area by FLOPs")
    axes = figure.add_subplot()
    colours = dict(zip(OPERATORS, COLOURS, strict=False))
    for region in regions:
        corner = (region.x - 0.5, region.y - 0.5)
        axes.add_patch(
            Rectangle(
                corner,
                region.width,
                region.height,
                facecolor=colours[region.operator],
                edgecolor="white",
                linewidth=0.6,
            )
        )
    for block in {region.block for region in regions}:
        mine = [region for region in regions if region.block == block]
        x, y = min(r.x for r in mine) - 0.5, min(r.y for r in mine) - 0.5
        width, height = max(r.x + r.width for r in mine) - x, max(r.y + r.height for r in mine) - y
        axes.add_patch(
            Rectangle((x, y), width - 0.5, height - 0.5, fill=False, edgecolor="black", linewidth=1.2)
        )
    n_blocks = 1 + max((region.block for region in regions if region.block is not None), default=-1)
    every = max(1, -(-n_blocks // _BLOCK_LABELS))
    for region in regions:
        if region.operator == "ffn up" and region.block is not None and region.block % every == 0:
            middle = (region.x + region.width / 2, region.y + region.height / 2)
            axes.text(*middle, str(region.block), color="white", ha="center", va="center", fontsize=8)
    outline_mesh(axes, arch.width, arch.height)
    axes.legend(
        handles=[Patch(color=colour, label=operator) for operator, colour in colours.items()],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        title="number: block",
    )
    return figure


_MARKS = ("o", "s", "^", "v", "D", "P", "X", "*")


def roofline(report: Report, arch: Arch = WSE2) -> Figure:
    """FLOP/s of a report's operators over their FLOPs per byte, under the roofs of one wafer.

    Filled: per byte read or written in SRAM. Hollow, of a streaming run: matrices per byte of weights that
    comes in. Raises DataError where no operator has FLOPs, bytes and cycles.
    """
    rows = [op for op in report.per_op if op.n_flops > 0 and op.cycles > 0 and op.n_bytes > 0]
    if not rows:
        raise DataError("no operator of this report has FLOPs, bytes and cycles: there is no roofline")
    figure = new_figure(620, f"Roofline of {report.arch}, {report.execution}: modelled")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="FLOP/s of one system")
    for place, kind in enumerate(dict.fromkeys(op.kind for op in rows)):
        mine = [op for op in rows if op.kind == kind]
        look: dict[str, Any] = {"marker": _MARKS[place % len(_MARKS)], "s": 34, "zorder": 3}
        colour = COLOURS[place % len(COLOURS)]
        axes.scatter(*_points(mine, report, _sram_bytes), color=colour, label=kind, **look)
        streamed = [op for op in mine if op.weight_bytes]
        if report.execution == "streaming" and streamed:
            points = _points(streamed, report, lambda op, _: op.weight_bytes)
            axes.scatter(
                *points, facecolors="none", edgecolors=colour, label=f"{kind}, per byte streamed", **look
            )
    lowest = axes.get_ylim()[0]
    _roofs(axes, report, arch)
    axes.set_ylim(lowest / 3, 3 * arch.peak_flops_per_s)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _sram_bytes(op: OpCost, systems: int) -> float:
    """Bytes that one of the systems moves: all weights, its share of the rest."""
    return op.weight_bytes + (op.n_bytes - op.weight_bytes) / systems


def _points(
    rows: Sequence[OpCost], report: Report, n_bytes: Callable[[OpCost, int], float]
) -> tuple[list[float], list[float]]:
    """FLOPs per byte, and FLOP/s, of one system."""
    flops = [op.n_flops / report.systems for op in rows]
    intensity = [n / n_bytes(op, report.systems) for n, op in zip(flops, rows, strict=True)]
    return intensity, [n * report.clock_hz / op.cycles for n, op in zip(flops, rows, strict=True)]


def _roofs(axes: Any, report: Report, arch: Arch) -> None:
    """Lines that no operator can pass: the peak, SRAM's bandwidth, the way in."""
    peak, names = arch.peak_flops_per_s, {"memory_bandwidth_bytes_per_s": "SRAM"}
    if report.execution == "streaming":
        names["io_bytes_per_s"] = "weights streamed in"
    low, high = axes.get_xlim()
    low = min(low, 0.03)
    for name, style in zip(names, ("-", "--"), strict=False):
        rate = arch.figures[name].value
        ridge = peak / rate
        high = max(high, 4 * ridge)
        axes.plot(
            [low, ridge], [low * rate, peak], "k" + style, lw=1.2, label=f"{names[name]}, {_bytes(rate)}"
        )
    axes.plot([low, high], [peak, peak], "k:", lw=1.4, label=f"peak fp16, {format_flops(peak, True)}")
    axes.set_xlim(low, high)


def _bytes(rate: float) -> str:
    return f"{rate / 1e15:g} PB/s" if rate >= 1e15 else f"{rate / 1e9:g} GB/s"


def scaling_curve(points: Sequence[tuple[int, float]], name: str) -> Figure:
    """Samples/s over systems, beside a line straight through the first point, and the share kept of it."""
    systems, rates = np.array([n for n, _ in points]), np.array([rate for _, rate in points])
    ideal = rates[0] * systems / systems[0]
    figure = new_figure(620, f"{name}: training rate over systems, same batch each: modelled")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot(systems, ideal, "--", color=COLOURS[6], label="linear")
    upper.plot(systems, rates, "o-", color=COLOURS[0], label="modelled")
    upper.set(xscale="log", yscale="log", ylabel="samples/s")
    upper.set_xticks(systems, [str(n) for n in systems])
    upper.minorticks_off()
    upper.legend()
    lower.plot(systems, 100 * rates / ideal, "s-", color=COLOURS[3])
    lower.set(xlabel="systems", ylabel="of linear (%)", ylim=(min(85, *(100 * rates / ideal)) - 2, 101.5))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
