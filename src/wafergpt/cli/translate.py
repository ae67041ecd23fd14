"""`wafergpt translate`: the translation of a text, by a model fine-tuned on a pair of languages."""

from __future__ import annotations

from typing import Annotated

import typer

from wafergpt.cli import asking, options


def translate(
    text: Annotated[str | None, typer.Argument(help="Text; without it, lines of standard input.")] = None,
    model: asking.Model = ...,  # type: ignore[assignment]
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
    """Translate TEXT."""
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
    asking.ask(asking.open_pipeline("translation", model, backend, precision, device, {}), asked)
