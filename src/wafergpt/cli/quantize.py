"""`wafergpt quantize`: a model packed in a lower precision, with the proof of what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    source: Annotated[
        str, typer.Argument(help="Run, checkpoint or Hugging Face folder, hub name, .gguf, .mdl.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    precision: Annotated[str, typer.Option(help="int8, int4, bf16 or f32.")] = "int8",
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text to compare the loss on: a prepared folder, or text files."),
    ] = None,
    max_rise: Annotated[
        float | None,
        typer.Option(help="By how many percent its bits/byte may rise.", show_default="0.3 int8, 3 int4"),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Bound in nats on the answers.", show_default="derived")
    ] = None,
) -> None:
    """Pack SOURCE as TARGET, run what was written, and keep it only if it still says the same."""
    from wafergpt.conversion.quantize import quantize as run

    run(source, target, precision, data=data or (), max_kl=max_kl, max_rise_percent=max_rise, tell=print)
    print(f"wrote {target}")
