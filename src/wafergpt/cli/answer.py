"""`wafergpt answer`: the answer to a question about a passage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wafergpt.cli import asking, options
from wafergpt.config import require
from wafergpt.errors import DataError


def answer(
    question: Annotated[
        str | None, typer.Argument(help="Question; without it, lines of standard input.")
    ] = None,
    model: asking.Model = ...,  # type: ignore[assignment]
    context: Annotated[str | None, typer.Option(help="The passage.")] = None,
    context_file: Annotated[Path | None, typer.Option(help="... or a text file that holds it.")] = None,
    file: asking.File = None,
    out: asking.Out = None,
    columns: asking.Columns = None,
    score: asking.Score = False,
    json: asking.Json = False,
    max_new_tokens: asking.MaxNewTokens = None,
    beams: asking.Beams = None,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Answer QUESTION from the passage in --context."""
    given = [word for word in (context, context_file, file) if word is not None]
    require(len(given) == 1, "give the passage: one of --context, --context-file and --file")
    decoding = {"max_new_tokens": max_new_tokens, "n_beams": beams}
    asked = asking.Asked(
        text=question, file=file, out=out, columns=columns or (), score=score, json=json, decoding=decoding
    )
    if context_file is not None:
        try:
            context = context_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read '{context_file}': {error}") from None
    pipe = asking.open_pipeline("qa", model, backend, precision, device, {})
    asking.ask(pipe, asked, lambda text: {"question": text, "context": context})
