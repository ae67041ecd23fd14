"""Figures of a mesh of PEs: wavelets per link, bytes per PE, tiles of a model's matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wafergpt.errors import DataError
from wafergpt.wafer.plots.canvas import COLOURS, SHADES, new_figure, outline_mesh
from wafergpt.wafer.programs.placement import Placed

_PORTS = ("north", "east", "south", "west")
_STEPS = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
LARGEST_DRAWN = 64  # meshes up to this edge show every link as a line
_SIDE = 0.16  # the two directions of a link lie this far from its middle


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
    y, x = np.mgrid[:height, :width]
    axes.scatter(x, y, marker="s", s=(190 / max(height, width)) ** 2, color="#DDDDDD", zorder=1)
    lines = LineCollection(
        segments.tolist(), cmap=SHADES, linewidths=_line_width(max(height, width)), zorder=2
    )
    lines.set_array(values)
    lines.set_clim(0, max(1, int(values.max(initial=0))))
    axes.add_collection(lines)
    outline_mesh(axes, width, height)
    figure.colorbar(lines, label="wavelets in one direction", shrink=0.8)
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
        found.append(np.stack([start + 0.1 * _STEPS[port], start + 0.9 * _STEPS[port]], axis=1))
        values.append(links[..., port][inside])
    return np.concatenate(found), np.concatenate(values)


def _line_width(edge: int) -> float:
    return float(np.clip(60 / edge, 0.8, 6))


def _link_panels(links: NDArray[np.int64], title: str) -> Figure:
    figure = new_figure(900, title)
    for port, axes in enumerate(figure.subplots(2, 2).flat):
        image = axes.imshow(links[..., port], cmap=SHADES, vmin=0, vmax=max(1, int(links.max())))
        axes.set(title=f"to the {_PORTS[port]}", xlabel="PE x", ylabel="PE y")
    figure.colorbar(image, ax=figure.axes, label="wavelets")
    return figure


def memory_map(parts: Mapping[str, NDArray[Any]], limit_bytes: int, name: str) -> Figure:
    """Bytes of every PE, and what they are: `parts` maps code, weights, ... to bytes [height, width]."""
    total = np.sum(list(parts.values()), axis=0)
    height, width = total.shape
    figure = new_figure(560, f"{name}: memory of the PEs: modelled")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    image = left.imshow(total / 1024, cmap=SHADES, vmin=0, vmax=limit_bytes / 1024, interpolation="nearest")
    outline_mesh(left, width, height)
    left.set_title("used of each PE", fontsize=10)
    figure.colorbar(image, ax=left, label=f"KiB (of {limit_bytes / 1024:g})", shrink=0.7)
    fullest = np.unravel_index(int(total.argmax()), total.shape)
    bars = {
        "mean": [part.mean() for part in parts.values()],
        "fullest": [part[fullest] for part in parts.values()],
    }
    for place, (what, n_bytes) in enumerate(bars.items()):
        base = 0.0
        for (part, amount), colour in zip(zip(parts, n_bytes, strict=True), COLOURS, strict=False):
            right.bar(
                what, amount / 1024, bottom=base, color=colour, width=0.6, label=part if place == 0 else None
            )
            base += amount / 1024
        right.text(place, base, f"{base:.1f}", ha="center", va="bottom", fontsize=9)
    right.axhline(
        limit_bytes / 1024, color="black", ls="--", lw=1, label=f"all of a PE, {limit_bytes / 1024:g} KiB"
    )
    right.set(ylabel="KiB", title="what is in it")
    right.title.set_fontsize(10)
    right.margins(y=0.1)
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def tile_map(placed: Sequence[Placed], size: tuple[int, int], name: str) -> Figure:
    """Which rows of each matrix [out, in] the PEs of a mesh of `size` (width, height) hold."""
    matrices = [one for one in placed if len(one.shape) == 2][:6]
    width, height = size
    figure = new_figure(720, f"{name}: where the matrices' tiles lie on {width} x {height} PEs: modelled")
    for axes, one in zip(figure.subplots(2, 3).flat, matrices, strict=False):
        first = np.array([[one.part(x, y)[0][0] for x in range(width)] for y in range(height)])
        image = axes.imshow(first, cmap=SHADES, vmin=0, interpolation="nearest")
        outline_mesh(axes, width, height)
        axes.set_title(
            f"{one.name}\n{one.shape[0]} x {one.shape[1]}, tile {one.tile[0]} x {one.tile[1]}", fontsize=9
        )
        figure.colorbar(image, ax=axes, shrink=0.7, label="first row held")
    for axes in figure.axes[len(matrices) : 6]:
        axes.set_visible(False)
    return figure
