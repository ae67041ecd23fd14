"""The loss curve of a run as a picture (needs matplotlib, the `plots` extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wafergpt.checkpoints.files import write_atomic
from wafergpt.errors import DataError, MissingDependencyError
from wafergpt.training import metrics


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it; same length."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def save_loss_curve(metrics_path: Path, png_path: Path, title: str, unit: str = "nats/token") -> None:
    """Draw training and held-out loss over tokens from a metrics file into `png_path`.

    Raises MissingDependencyError without matplotlib, DataError when there is no loss to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "the loss curve needs matplotlib: pip install 'wafergpt[plots]'"
        ) from None
    lines = metrics.read(metrics_path)
    trained = [line for line in lines if line.get("loss") is not None]
    name = (
        "held_out_nats_per_token"
        if any("held_out_nats_per_token" in line for line in lines)
        else "held_out_nats"
    )
    held_out = [line for line in lines if line.get(name) is not None]
    if not trained:
        raise DataError(f"'{metrics_path}' holds no loss to draw")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    tokens, losses = _columns(trained, "total_tokens", "loss")
    window = max(1, len(losses) // 50)
    axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(
        tokens, moving_mean(losses, window), color="tab:blue", label=f"training, mean of {window} steps"
    )
    if held_out:
        axes.plot(*_columns(held_out, "total_tokens", name), "o-", color="tab:orange",
                  markersize=3, label="held out")  # fmt: skip
        title += f"\nheld out: {held_out[-1][name]:.3f} {unit}"
        if "held_out_bits_per_byte" in held_out[-1]:
            title += f", {held_out[-1]['held_out_bits_per_byte']:.3f} bits/byte"
    axes.set(xlabel="training tokens", ylabel=f"loss ({unit})", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_atomic(png_path, picture.getvalue())


def _columns(lines: Sequence[dict[str, Any]], *names: str) -> tuple[list[float], ...]:
    return tuple([float(line[name]) for line in lines] for name in names)
