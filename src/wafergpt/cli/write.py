"""`wafergpt write`: go on with a text, rewrite it in a style, give it a title."""

from __future__ import annotations

from typing import Annotated

import typer

from wafergpt.cli import asking, options


def write(
    text: Annotated[str | None, typer.Argument(help="Text; without it, lines of standard input.")] = None,
    model: asking.Model = ...,  # type: ignore[assignment]
    kind: Annotated[
        str | None,
        typer.Option(help="continue, rewrite or title.", show_default="as fine-tuned, or continue"),
    ] = None,
    style: Annotated[str | None, typer.Option(help="To rewrite in.", show_default="as fine-tuned")] = None,
    file: asking.File = None,
    out: asking.Out = None,
    columns: asking.Columns = None,
    score: asking.Score = False,
    json: asking.Json = False,
    max_new_tokens: asking.MaxNewTokens = None,
    temperature: asking.Temperature = None,
    frequency_penalty: asking.FrequencyPenalty = None,
    beams: asking.Beams = None,
    seed: asking.Seed = None,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Write what follows from TEXT."""
    decoding = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "frequency_penalty": frequency_penalty,
        "n_beams": beams,
        "seed": seed,
    }
    asked = asking.Asked(
        text=text, file=file, out=out, columns=columns or (), score=score, json=json, decoding=decoding
    )
    settings = {name: value for name, value in (("kind", kind), ("style", style)) if value is not None}
    asking.ask(asking.open_pipeline("writing", model, backend, precision, device, settings), asked)
