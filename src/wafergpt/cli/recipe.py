"""`wafergpt recipe`: print a published recipe, or derive one from parameters, FLOPs or hours."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wafergpt.runs.recipe import Recipe, Sheet, TrainingRate

STATUS_STYLE = {"published": "green", "derived": "cyan", "assumed": "yellow", "measured": "magenta"}
LEGEND = (
    "published: printed by the authors; derived: follows from that; assumed: our own choice; "
    "measured: on this machine"
)


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="A published size: 111M to 13B, 111M-muP to 2.7B-muP, 40M-muP.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="Derive a recipe for about this many parameters: 8M, 1.3B.")
    ] = None,
    flops: Annotated[str | None, typer.Option(help="Derive one that costs at most this: 1e16.")] = None,
    hours: Annotated[
        float | None, typer.Option(help="Derive one that trains on this machine within this time.")
    ] = None,
    parametrization: Annotated[str, typer.Option(help="mup or standard, of a derived recipe.")] = "mup",
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary of a derived recipe.", show_default="by size")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Window of a derived recipe, in tokens.", show_default="by size")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the recipe as JSON.")] = False,
) -> None:
    """Print the whole published recipe of NAME, or derive one by the family's rules."""
    from wafergpt.config import require
    from wafergpt.runs import recipe as recipes
    from wafergpt.units import parse_count

    choices = {"NAME": name, "--params": params, "--flops": flops, "--hours": hours}
    given = [option for option, value in choices.items() if value is not None]
    require(
        len(given) == 1,
        f"give exactly one of {', '.join(choices)}" + (f"; got {' and '.join(given)}" if given else ""),
    )
    if name is not None:
        unused = parametrization != "mup" or vocab_size is not None or seq_len is not None
        require(not unused, "--parametrization, --vocab-size and --seq-len apply to derived recipes only")
        sheet = recipes.published(name)
    else:
        sheet = recipes.derived(
            n_params=None if params is None else parse_count(params),
            flops=None if flops is None else parse_count(flops),
            hours=hours,
            measure=_measure,
            parametrization=parametrization,
            vocab_size=vocab_size,
            seq_len=seq_len,
        )
    print(as_json(sheet) if json else as_table(sheet), end="")


def as_json(sheet: Sheet) -> str:
    """The sheet as a JSON object: title, model, figures by name, notes."""
    from json import dumps

    from wafergpt.config import to_dict

    tree = to_dict(sheet)
    figures = {row.pop("figure"): row for row in tree.pop("rows")}
    document = {
        "title": tree["title"],
        "model": tree["config"],
        "figures": figures,
        "notes": tree["notes"],
    }
    return dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_table(sheet: Sheet) -> str:
    """The sheet as a table with each figure's status and source, and the notes below it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 150, force_terminal=is_terminal, highlight=False)
    table = Table(title=sheet.title, title_justify="left", caption=LEGEND, caption_justify="left")
    for column in ("figure", "value", "status", "source"):
        table.add_column(column)
    previous = ""
    for row in sheet.rows:
        style = STATUS_STYLE[row.status.value]
        source = "same" if row.source == previous else escape(row.source)
        table.add_row(row.figure, escape(row.text), f"[{style}]{row.status.value}[/]", f"[dim]{source}[/]")
        previous = row.source
    with console.capture() as capture:
        console.print(table)
        for note in sheet.notes:
            console.print(f"note: {escape(note)}")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _measure(candidate: Recipe) -> TrainingRate:
    from wafergpt import api
    from wafergpt.units import format_count

    size, load, n_cores = format_count(candidate.model.n_params), os.getloadavg()[0], os.cpu_count() or 1
    if load > n_cores:
        print(
            f"note: other work keeps this machine busy (load {load:.1f} on {n_cores} cores)", file=sys.stderr
        )
    print(f"measuring how fast this machine trains a model of {size} parameters ...", file=sys.stderr)
    return api.measure_training_rate(candidate)
