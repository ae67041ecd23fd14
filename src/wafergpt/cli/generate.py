"""`wafergpt generate`: continue a prompt with a trained model, streaming the text."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wafergpt.cli import options
from wafergpt.config import require
from wafergpt.errors import ConfigError

if TYPE_CHECKING:
    from wafergpt.api import LoadedModel, SamplingConfig


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
    max_new_tokens: options.MaxNewTokens = 128,
    min_new_tokens: options.MinNewTokens = 0,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    presence_penalty: options.PresencePenalty = 0.0,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_token: options.StopToken = None,
    greedy: options.Greedy = False,
    n: Annotated[int, typer.Option("--n", help="Continuations to write; above 1 they come at the end.")] = 1,
    best_of: Annotated[
        int | None, typer.Option(help="Write so many, keep the n of highest mean log-probability.")
    ] = None,
    beams: Annotated[int, typer.Option(help="Above 1: greedy beam search with so many beams.")] = 1,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt before its continuation.")] = True,
) -> None:
    """Continue PROMPT with the model in --model; text goes to standard output as it is written."""
    require(not (greedy and temperature), "--greedy and --temperature exclude each other")
    from wafergpt import api

    sampling = api.SamplingConfig(
        temperature=_temperature(temperature, greedy=greedy or beams > 1),
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=dict(map(_bias, logit_bias or ())),
        seed=seed,
        stop=tuple(stop or ()),
        stop_token_ids=tuple(stop_token or ()),
        min_new_tokens=min_new_tokens,
        max_new_tokens=max_new_tokens,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = api.load(model, backend=backend, precision=precision, device=device)
    options.say_notes(loaded)
    write = _stream if (n, best_of, beams) == (1, None, 1) else partial(_samples, n, best_of, beams)
    if write(loaded, text, sampling, text if echo else ""):
        window = loaded.backend.max_seq_len
        print(f"note: stopped because the context window of {window} tokens is full", file=sys.stderr)


def _stream(loaded: LoadedModel, text: str, sampling: SamplingConfig, shown: str) -> bool:
    """Print as it is written; whether the window was full in the end."""
    pieces = loaded.stream(text, sampling)
    window_full = False
    try:
        print(shown, end="", flush=True)
        for piece in pieces:
            print(piece.text, end="", flush=True)
            window_full = piece.window_full
    finally:  # also when interrupted
        print(flush=True)
    return window_full


def _samples(
    n: int,
    best_of: int | None,
    beams: int,
    loaded: LoadedModel,
    text: str,
    sampling: SamplingConfig,
    shown: str,
) -> bool:
    """Print them when all are there; whether the window was full at the end of one."""
    samples = loaded.samples(text, sampling, n=n, best_of=best_of, n_beams=beams)
    for index, sample in enumerate(samples, 1):
        print(*([f"--- {index} of {len(samples)}"] if n > 1 else []), f"{shown}{sample.text}", sep="\n")
    return any(sample.window_full for sample in samples)


def _temperature(given: float | None, *, greedy: bool) -> float:
    if given is None:
        return 0.0 if greedy else 1.0
    return given


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise ConfigError(f"--logit-bias {text}: expected ID=BIAS, as in 50256=-5") from None
