"""`wafergpt chat`: a conversation with a model, turn by turn, as it writes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from wafergpt.cli import asking, options


def chat(
    text: Annotated[str | None, typer.Argument(help="First words; without them, a conversation.")] = None,
    model: asking.Model = ...,  # type: ignore[assignment]
    system: Annotated[str | None, typer.Option(help="Said before the conversation.")] = None,
    file: asking.File = None,
    out: asking.Out = None,
    columns: asking.Columns = None,
    score: asking.Score = False,
    json: asking.Json = False,
    max_new_tokens: asking.MaxNewTokens = None,
    temperature: asking.Temperature = None,
    frequency_penalty: asking.FrequencyPenalty = None,
    seed: asking.Seed = None,
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Talk with the model in --model; an empty line starts a new conversation."""
    decoding = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
    }
    asked = asking.Asked(
        text=text, file=file, out=out, columns=columns or (), score=score, json=json, decoding=decoding
    )
    settings = {} if system is None else {"system": system}
    pipe = asking.open_pipeline("chat", model, backend, precision, device, settings)
    if text is not None or file is not None:
        asking.ask(pipe, asked, lambda said: {"messages": [{"role": "user", "content": said}]})
        return
    messages: list[dict[str, str]] = []
    for line in asking.turns():
        if not line:
            messages = []
            print("(a new conversation)", file=sys.stderr)
            continue
        messages.append({"role": "user", "content": line})
        messages = _turn(pipe, messages, decoding, as_json=json)


def _turn(
    pipe: Any, messages: list[dict[str, str]], decoding: dict[str, Any], *, as_json: bool
) -> list[dict[str, str]]:
    """Answer the last message; the conversation with the answer, its oldest turns gone if they do not fit."""
    shown: list[str] = []

    def on_text(text: str) -> None:
        text = text if shown else text.lstrip()
        if text:
            shown.append(text)
            print(text, end="", flush=True)

    answer, kept = pipe.reply(messages, *([] if as_json else [on_text]), **decoding)
    if len(kept) < len(messages):
        n = len(messages) - len(kept)
        print(f"note: the first {n} messages no longer fit the context window", file=sys.stderr)
    if as_json:
        asking.show(answer, as_json=True)
    else:
        print(flush=True)
        asking.say_sure(answer)
    return [*kept, {"role": "assistant", "content": answer.text}]
