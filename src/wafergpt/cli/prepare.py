"""`wafergpt prepare`: text files into verified, memory-mapped token shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wafergpt.data.config import PrepareConfig
    from wafergpt.data.prepare import Prepared


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(help="Text: txt, md, jsonl, csv (.gz, .zst), parquet, folders, globs, asset:NAME."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="gpt2, train:SIZE, or the path of a tokenizer.json.")
    ] = "gpt2",
    held_out: Annotated[
        str, typer.Option(help="none, documents:EVERY or blocks:EVERY:CHARS.")
    ] = "documents:20",
    text_field: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    document_separator: Annotated[
        str | None, typer.Option(help="What stands between the documents of one .txt file.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Recorded in the manifest for files.")] = "not stated",
    workers: Annotated[
        int | None, typer.Option(help="Tokenising processes.", show_default="one per core")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the prepared data in the folder.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
) -> None:
    """Check, split, tokenise and pack text; what is published is complete and verified."""
    from wafergpt.data.config import HeldOut, PrepareConfig

    config = PrepareConfig(
        sources=tuple(sources),
        output=out,
        tokenizer=tokenizer,
        held_out=HeldOut.parse(held_out),
        text_field=text_field,
        document_separator=document_separator,
        licence=licence,
        n_workers=workers,
        overwrite=overwrite,
        offline=offline,
    )
    _print_summary(_prepare_with_progress(config))


def _prepare_with_progress(config: PrepareConfig) -> Prepared:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from wafergpt.data.prepare import prepare as run
    from wafergpt.units import format_count

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        row = bars.add_task("reading", total=None, tokens="0")
        return run(
            config,
            lambda progress: bars.update(
                row,
                description=progress.phase,
                completed=progress.read_bytes,
                total=progress.total_bytes or None,
                tokens=format_count(progress.n_tokens),
            ),
        )


def _print_summary(prepared: Prepared) -> None:
    for name, manifest in (("train", prepared.train), ("held out", prepared.held_out)):
        if manifest is not None:
            counts = f"{manifest.n_tokens:,} tokens, {manifest.n_text_bytes:,} bytes"
            print(f"{name:<9} {counts}, {manifest.n_documents:,} documents")
    n_repeated = prepared.train.counts["n_repeated_documents"]
    if n_repeated:
        print(f"warning   {n_repeated:,} held-out document(s) are word for word in the training part too")
    n_empty = sum(side.counts["n_empty_documents"] for side in (prepared.train, prepared.held_out) if side)
    if n_empty:
        print(f"left out  {n_empty:,} document(s) without text")
    if prepared.ignored:
        print(f"ignored   {len(prepared.ignored)} file(s) of no known format, first '{prepared.ignored[0]}'")
    for source in prepared.train.sources[:5]:
        print(f"source    {source.name}; licence: {source.licence}")
    print(f"written   {prepared.folder}")
