"""`wafergpt eval`: nats per token, perplexity and bits per byte of a model on held-out text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from wafergpt.cli import options


def eval(
    model: Annotated[
        Path, typer.Option(help="Run, checkpoint or Hugging Face folder, hub name, .gguf or .mdl file.")
    ] = ...,  # type: ignore[assignment]
    data: Annotated[
        list[Path],
        typer.Option(
            help="A prepared folder (its held-out part), or a text file; may be given several times."
        ),
    ] = ...,  # type: ignore[assignment]
    seq_len: Annotated[int | None, typer.Option(help="Window in tokens.", show_default="the model's")] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="How far windows are apart; equal to the window is twice as fast and reads higher.",
            show_default="half the window",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Also gzip -9, xz and 1-, 3- and 5-gram Kneser-Ney on the same text."
        ),
    ] = False,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure the model in --model on the text in --data; every token is predicted exactly once."""
    from wafergpt import api

    loaded = api.load(model, backend=backend, precision=precision, device=device)
    options.say_notes(loaded)
    report = api.evaluate(loaded, data, seq_len=seq_len, stride=stride, baselines=baselines)
    if baselines and len(report.rows) == 2:
        print("note: n-gram baselines need a prepared folder, for its training text", file=sys.stderr)
    if json:
        print(report.to_json())
        return
    row = report.rows[0]
    print(f"nats/token  {row.nats_per_token:.4f}")
    print(f"perplexity  {row.perplexity:.2f}")
    print(f"bits/byte   {row.bits_per_byte:.4f}")
    print(f"\n{report.to_markdown()}", end="")
