"""`wafergpt classify`: the label of a text, with calibrated confidence."""

from __future__ import annotations

from typing import Annotated

import typer

from wafergpt.cli import asking, options


def classify(
    text: Annotated[str | None, typer.Argument(help="Text; without it, lines of standard input.")] = None,
    model: asking.Model = ...,  # type: ignore[assignment]
    file: asking.File = None,
    out: asking.Out = None,
    columns: asking.Columns = None,
    score: asking.Score = False,
    json: asking.Json = False,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Say which label TEXT has."""
    asked = asking.Asked(text=text, file=file, out=out, columns=columns or (), score=score, json=json)
    asking.ask(asking.open_pipeline("classification", model, backend, precision, device, {}), asked)
