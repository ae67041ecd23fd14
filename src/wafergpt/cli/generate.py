"""`wafergpt generate`: continue a prompt with a trained model, streaming the text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from wafergpt.config import require


def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            help="Text to continue; '-' reads it from standard input; empty starts a new document."
        ),
    ] = "",
    model: Annotated[
        Path, typer.Option(help="Run, checkpoint or Hugging Face folder, hub name, .gguf or .mdl file.")
    ] = ...,  # type: ignore[assignment]
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 safer, above 1 wilder; 0 is greedy.", show_default="1.0")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k most likely tokens only.")] = None,
    top_p: Annotated[
        float, typer.Option(help="... among the fewest tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Of the random draws; the same seed writes the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the most likely token (temperature 0).")
    ] = False,
    echo: Annotated[bool, typer.Option(help="Print the prompt before its continuation.")] = True,
) -> None:
    """Continue PROMPT with the model in --model; text goes to standard output as it is written."""
    require(not (greedy and temperature), "--greedy and --temperature exclude each other")
    from wafergpt import api

    sampling = api.SamplingConfig(
        temperature=0.0 if greedy else 1.0 if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        max_new_tokens=max_new_tokens,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = api.load(model)
    for skipped in loaded.skipped:
        print(f"note: skipped checkpoint '{skipped.path}': {skipped.reason}", file=sys.stderr)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    pieces = loaded.stream(text, sampling)
    window_full = False
    try:
        print(text if echo else "", end="", flush=True)
        for piece in pieces:
            print(piece.text, end="", flush=True)
            window_full = piece.window_full
    finally:  # also when interrupted
        print(flush=True)
    if window_full:
        window = loaded.backend.max_seq_len
        print(f"note: stopped because the context window of {window} tokens is full", file=sys.stderr)
