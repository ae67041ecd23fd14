"""Figures of a mesh of PEs: wavelets per link, bytes per PE, tiles of a model's matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import DataError
from wafergpt.wafer.plots.canvas import (
    COLOURS,
    SHADES,
    Figure,
    LineCollection,
    PatchCollection,
    Rectangle,
    new_figure,
    outline_mesh,
    shade_bar,
)
from wafergpt.wafer.programs.placement import Placed

_PORTS = ("north", "east", "south", "west")
_STEPS = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
LARGEST_DRAWN = 64  # meshes up to this edge show every link as a line
_SIDE = 0.13  # the two directions of a link lie this far from its middle


def link_heat_map(wavelets: NDArray[np.int64], cycles: int, name: str) -> Figure:
    """`wavelets` [height, width, 5]: those that left each PE to the north, east, south, west and core."""
    height, width = wavelets.shape[:2]
    if wavelets.shape[2] != 5 or cycles < 1:
        raise DataError("links are [height, width, 5] wavelets of at least one cycle")
    links = wavelets[..., :4]
    busiest = links.max() / cycles
    title = (
        f"{name}: wavelets per link in {cycles:,} cycles (busiest link {busiest:.1%} of the time): modelled"
    )
    if max(height, width) > LARGEST_DRAWN:
        return _link_panels(links, title)
    figure = new_figure(860, title)
    axes = figure.add_subplot()
    segments, values = link_segments(links)
    squares = [Rectangle((x - 0.2, y - 0.2), 0.4, 0.4) for y in range(height) for x in range(width)]
    axes.add_collection(PatchCollection(squares, facecolor="white", edgecolor="#999999", linewidth=0.6))
    lines = LineCollection(
        segments.tolist(), cmap=SHADES, linewidths=_line_width(max(height, width)), zorder=2
    )
    lines.set_array(values)
    lines.set_clim(0, max(1, int(values.max(initial=0))))
    axes.add_collection(lines)
    outline_mesh(axes, width, height)
    shade_bar(axes, lines, "wavelets in one direction")
    figure.supxlabel(
        "Two lines join two PEs, one for each direction: traffic keeps to the right.", fontsize=9
    )
    return figure


def link_segments(links: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Every link as a line [n, 2, 2] of (x, y), on the right of its direction, and its wavelets."""
    height, width = links.shape[:2]
    found, values = [], []
    for port, (dx, dy) in enumerate(_STEPS):
        y, x = np.mgrid[:height, :width]
        inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
        start = np.stack([x[inside], y[inside]], axis=1) + _SIDE * np.array([-dy, dx])
        found.append(np.stack([start + 0.22 * _STEPS[port], start + 0.78 * _STEPS[port]], axis=1))
        values.append(links[..., port][inside])
    return np.concatenate(found), np.concatenate(values)


def _line_width(edge: int) -> float:
    return float(np.clip(80 / edge, 0.8, 7))


def _link_panels(links: NDArray[np.int64], title: str) -> Figure:
    figure = new_figure(900, title)
    for port, axes in enumerate(figure.subplots(2, 2).flat):
        image = axes.imshow(links[..., port], cmap=SHADES, vmin=0, vmax=max(1, int(links.max())))
        axes.set(title=f"to the {_PORTS[port]}", xlabel="PE x", ylabel="PE y")
    figure.colorbar(image, ax=figure.axes, label="wavelets")
    return figure


def memory_map(parts: Mapping[str, NDArray[Any]], limit_bytes: int, name: str) -> Figure:
    """Bytes of every PE by what they are: `parts` maps code, weights, ... to bytes [height, width]."""
    total = np.sum(list(parts.values()), axis=0)
    height, width = total.shape
    figure = new_figure(680, f"{name}: memory of the PEs: modelled")
    maps: Any
    bars: Any
    maps, bars = figure.subfigures(1, 2, width_ratios=(1.5, 1))  # type: ignore[misc]
    panels = maps.subplots(-(-len(parts) // 2), 2, squeeze=False)
    for axes, (part, n_bytes) in zip(panels.flat, parts.items(), strict=False):
        unit, scale = ("KiB", 1024) if n_bytes.max() >= 1024 else ("B", 1)
        low, high = n_bytes.min() / scale, n_bytes.max() / scale
        image = axes.imshow(
            n_bytes / scale, cmap=SHADES, vmin=0, vmax=max(high, 1 / scale), interpolation="nearest"
        )
        outline_mesh(axes, width, height)
        said = f"{high:.3g} {unit} each" if low == high else f"{low:.3g} to {high:.3g} {unit}"
        axes.set_title(f"{part}: {said}", fontsize=9)
        shade_bar(axes, image, unit)
    for axes in panels.flat[len(parts) :]:
        axes.set_visible(False)
    fullest = np.unravel_index(int(total.argmax()), total.shape)
    _stack(
        bars.subplots(),
        {part: (float(n_bytes.mean()), float(n_bytes[fullest])) for part, n_bytes in parts.items()},
        limit_bytes,
    )
    return figure


def _stack(axes: Any, parts: Mapping[str, tuple[float, float]], limit_bytes: int) -> None:
    """Two bars, the mean PE and the fullest, beside a line at the memory's end."""
    base = np.zeros(2)
    for (part, n_bytes), colour in zip(parts.items(), COLOURS, strict=False):
        height = np.array(n_bytes) / 1024
        axes.bar(("mean", "fullest"), height, bottom=base, color=colour, width=0.6, label=part)
        base += height
    for place, top in enumerate(base):
        axes.text(place, top, f"{top:.1f}", ha="center", va="bottom", fontsize=9)
    limit = limit_bytes / 1024
    axes.axhline(limit, color="black", ls="--", lw=1, label=f"all of a PE, {limit:g} KiB")
    axes.set(ylabel="KiB of one PE", ylim=(0, 1.32 * max(limit, base.max())))
    axes.legend(fontsize=8, loc="upper left", reverse=True)


def tile_map(placed: Sequence[Placed], size: tuple[int, int], name: str) -> Figure:
    """Which rows of each matrix [out, in] the PEs of a mesh of `size` (width, height) hold."""
    matrices = [one for one in placed if len(one.shape) == 2][:6]
    width, height = size
    figure = new_figure(640, f"{name}: where the matrices' tiles lie on {width} x {height} PEs: modelled")
    for axes, one in zip(figure.subplots(2, 3).flat, matrices, strict=False):
        first = np.array([[one.part(x, y)[0][0] for x in range(width)] for y in range(height)])
        image = axes.imshow(first, cmap=SHADES, vmin=0, interpolation="nearest")
        outline_mesh(axes, width, height)
        axes.set_title(
            f"{one.name}\n{one.shape[0]} x {one.shape[1]}, a tile {one.tile[0]} x {one.tile[1]}", fontsize=9
        )
        shade_bar(axes, image, "first row held")
    for axes in figure.axes[len(matrices) : 6]:
        axes.set_visible(False)
    return figure


@dataclass(frozen=True, kw_only=True)
class CoreRow:
    """One PE of a timeline: (phase, first cycle, cycle after the last), and the same of its busy spans."""

    label: str
    phases: Sequence[tuple[str, int, int]]
    busy: Sequence[tuple[int, int]]


def core_timeline(rows: Sequence[CoreRow], window: tuple[int, int], name: str) -> Figure:
    """What cores do in the cycles of `window`: a stripe of the phases, black over it where they are busy."""
    first, last = window
    figure = new_figure(160 + 56 * len(rows), f"{name}, cycles {first:,} to {last:,}: modelled")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(phase for row in rows for phase, _, _ in row.phases))
    for place, row in enumerate(rows):
        for phase, colour in zip(names, COLOURS, strict=False):
            mine = [(start, end - start) for each, start, end in row.phases if each == phase]
            axes.broken_barh(mine, (place - 0.4, 0.4), color=colour, label="" if place else phase)
        spans = [(start, end - start) for start, end in row.busy if end > first and start < last]
        axes.broken_barh(spans, (place, 0.4), color="black", linewidth=0, label="" if place else "busy")
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set(xlim=window, ylim=(len(rows) - 0.5, -0.5), xlabel="cycle", ylabel="PE (x, y)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
