"""`wafergpt prepare`: text files into verified, memory-mapped token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(help="Text: txt, jsonl(.gz, .zst), csv, parquet, folders, globs, asset:NAME."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="gpt2, train:SIZE, or the path of a tokenizer.json.")
    ] = "gpt2",
    held_out: Annotated[str, typer.Option(help="none, documents:N or blocks:N:CHARS.")] = "documents:20",
    text_key: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    shard_tokens: Annotated[int, typer.Option(help="Tokens per shard file.")] = 100_000_000,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
) -> None:
    """Check, split, tokenise and pack text; what is published is complete and verified."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from wafergpt.data.config import HeldOutConfig, PrepareConfig
    from wafergpt.data.prepare import prepare as run
    from wafergpt.units import format_bytes

    config = PrepareConfig(
        sources=tuple(sources),
        out=out,
        tokenizer=tokenizer,
        held_out=HeldOutConfig.parse(held_out),
        text_key=text_key,
        shard_tokens=shard_tokens,
        workers=workers,
    )
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[size]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        rows = {}

        def show(doing: str, done_bytes: int, total_bytes: int) -> None:
            if doing not in rows:
                rows[doing] = bars.add_task(doing, total=total_bytes or None, size="")
            bars.update(rows[doing], completed=done_bytes, size=format_bytes(done_bytes))

        result = run(config, show)
    print(f"train     {result.n_train_tokens:,} tokens of {result.n_train_bytes:,} bytes")
    print(f"held out  {result.n_held_out_tokens:,} tokens of {result.n_held_out_bytes:,} bytes")
    print(f"documents {result.n_documents:,}; vocabulary {result.vocab_size:,}; licence: {result.licence}")
    print(f"written to {result.folder}")
