"""`wafergpt quickstart`: a real small Cerebras-GPT, pre-trained on real English, in about eight minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder to write; a number is added if it holds something.")
    ] = Path("runs/quickstart"),
    minutes: Annotated[float, typer.Option(min=0.05, help="How long to train.")] = 5.0,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: train on the documentation inside Python.")
    ] = False,
) -> None:
    """Fetch text, train a tokenizer and a model, evaluate, write samples and a report."""
    from rich.console import Console

    from wafergpt import quickstart as flow
    from wafergpt.runs import quickstart as runs

    console = Console()
    if os.environ.get("WAFERGPT_SMOKE", "0") not in ("", "0"):
        console.print("WAFERGPT_SMOKE is set: a few seconds on a toy model, to see that the path works")
        config = runs.smoke()
    else:
        config = runs.quickstart(minutes=minutes, offline=offline)
    folder = flow.free_folder(out)
    if folder != out:
        console.print(f"'{out}' holds something already; writing to '{folder}'")
    report = flow.quickstart(config, folder, console)
    console.print(f"\nreport: {report}\ncurve:  {folder / 'run' / 'loss.png'}")
    console.print(f"wafer:  {folder / 'wafer.html'}\nmodel:  {folder / 'run'}")
    console.print(f'next:   wafergpt generate --model {folder / "run"} "{config.prompts[0]}"')
