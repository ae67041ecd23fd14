"""What all figures share: matplotlib, their size, colours for the colour-blind, the way to PNG bytes."""

from __future__ import annotations

import io
from typing import Any

from wafergpt.errors import MissingDependencyError

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
except ImportError as error:
    raise MissingDependencyError(
        "the wafer's figures need matplotlib: pip install 'wafergpt[plots]'"
    ) from error

__all__ = ["Figure", "LineCollection", "Patch", "PatchCollection", "Rectangle"]  # for the other modules

WIDTH_PX, DPI = 1000, 125
# Okabe and Ito's set, without its yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#7F7F7F", "#000000")
SHADES = "cividis"  # even in lightness, made for colour-blind readers


def new_figure(height_px: int = 560, title: str = "") -> Figure:
    """An empty figure of `WIDTH_PX` by `height_px`."""
    figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes; a figure made anew has the same ones."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def shade_bar(axes: Any, image: Any, label: str) -> None:
    """A colour bar as high as the map in `axes`."""
    axes.figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)), label=label)


def outline_mesh(axes: Any, width: int, height: int) -> None:
    """Axes of a mesh of PEs: (0, 0) in the north-west, squares, whole numbers."""
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel="PE x", ylabel="PE y")
    axes.set_aspect("equal")
    axes.locator_params(integer=True)
