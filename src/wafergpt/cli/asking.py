"""What `classify`, `translate`, `answer`, `chat` and `write` share: options, files, one answer, a prompt."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from wafergpt.cli.finetune_options import pairs_of
from wafergpt.config import require
from wafergpt.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from wafergpt.api import Pipeline

Model = Annotated[
    str, typer.Option(help="Folder that `wafergpt finetune` wrote, or any model for a task without a head.")
]
File = Annotated[
    Path | None,
    typer.Option(help="Ask every record of this file: .jsonl, .json, .csv, .tsv, .parquet, .arrow."),
]
Out = Annotated[Path | None, typer.Option(help="Write the answers of --file here: .jsonl or .csv.")]
Columns = Annotated[
    list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="Where a field of the task stands in --file.")
]
Score = Annotated[bool, typer.Option("--score", help="--file has the right answers, too: print the scores.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for each answer.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Most tokens of an answer.", show_default="the task's")
]
Temperature = Annotated[float | None, typer.Option(help="0: the likeliest words.", show_default="the task's")]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Taken off a token's logit each time it was written: against loops.", show_default="0"),
]
Beams = Annotated[int | None, typer.Option(help="Above 1: greedy beam search.", show_default="1")]
Seed = Annotated[int | None, typer.Option(help="Of the random draws.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to ask, and how answers are to appear."""

    text: str | None = None  # one question
    file: Path | None = None
    out: Path | None = None
    columns: Sequence[str] = ()
    score: bool = False
    json: bool = False
    decoding: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require(self.text is None or self.file is None, "give either a text or --file, not both")
        require(self.file is not None or self.out is None, "--out goes with --file")
        require(self.file is not None or not self.score, "--score goes with --file")
        if self.out is not None and self.out.suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"--out {self.out}: answers are written as .jsonl or .csv")


def open_pipeline(
    task: str, model: str, backend: str, precision: str | None, device: str | None, settings: dict[str, Any]
) -> Pipeline:
    """The task on the model, its notes on standard error."""
    from wafergpt import api
    from wafergpt.cli.options import say_notes

    found = api.pipeline(task, model, settings=settings, backend=backend, precision=precision, device=device)
    say_notes(found.loaded)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return found


def ask(pipe: Pipeline, asked: Asked, record_of: Callable[[str], Any] = lambda text: text) -> None:
    """Answer one text, a file, or the lines of standard input; `record_of` makes a record of a line."""
    if asked.file is not None:
        _ask_file(pipe, asked)
        return
    for line in [asked.text] if asked.text is not None else _lines(pipe.task.asked[0]):
        show(pipe(record_of(line), **(asked.decoding or {})), as_json=asked.json)


def show(answer: Any, *, as_json: bool) -> None:
    """The answer on standard output, how sure it is on standard error; or all of it as JSON."""
    if as_json:
        print(json.dumps(_plain(answer), ensure_ascii=False), flush=True)
    else:
        print(answer.text, flush=True)
        say_sure(answer)


def say_sure(answer: Any) -> None:
    """How sure an answer is, and whether it was cut off, on standard error."""
    print(f"confidence {answer.confidence:.3f}{_others(answer)}", file=sys.stderr, flush=True)
    if answer.details.get("window_full"):
        print("note: the answer stopped because the context window is full", file=sys.stderr)


def _lines(what: str) -> Iterator[str]:
    """Lines of standard input that say something."""
    return (line for line in turns(what) if line)


def turns(what: str = "you") -> Iterator[str]:
    """Lines of standard input, stripped; on a terminal each is asked for."""
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            print(f"{what}> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()


def _others(answer: Any) -> str:
    """The runners-up of a classification."""
    odds = sorted(answer.details.get("probabilities", {}).items(), key=lambda item: -item[1])[1:4]
    return "".join(f"  {label} {p:.3f}" for label, p in odds)


def _plain(answer: Any) -> dict[str, Any]:
    return {"answer": answer.text, "confidence": answer.confidence, **answer.details}


def _ask_file(pipe: Pipeline, asked: Asked) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from wafergpt import api

    assert asked.file is not None
    rows, records = api.task_records(
        pipe.task, asked.file, dict(pairs_of("--columns", asked.columns)), asked.score
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("answers", total=len(records))
        if asked.score:
            scores = pipe.score(
                records,
                decoding=pipe.decoding(asked.decoding or {}),
                on_progress=lambda n: progress.update(bar, completed=n),
            )
            if asked.out is not None:
                _write(asked.out, scores.records, iter(scores.answers))
        else:
            found = progress.track(pipe.stream(records, **(asked.decoding or {})), task_id=bar)
            _write(asked.out, rows, iter(found))
    if asked.score:
        print(f"scores on {scores.n:,} examples of {asked.file}:", *scores.lines(), sep="\n")
        for one in scores.bins:
            print(
                f"  confidence {one.low:.2f} to {one.high:.2f}: mean {one.confidence:.3f},"
                f" right {one.accuracy:.3f} of {one.n:,}"
            )


def _write(out: Path | None, rows: Sequence[Mapping[str, Any]], answers: Iterator[Any]) -> None:
    """Each row with its answer and confidence, as soon as it is known; to standard output without `out`."""
    if out is None:
        _write_to(sys.stdout, "jsonl", rows, answers)
        return
    try:
        with open(out, "w", encoding="utf-8", newline="") as file:
            _write_to(file, out.suffix.removeprefix("."), rows, answers)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write '{out}': {error.strerror}") from error


def _write_to(file: TextIO, kind: str, rows: Sequence[Mapping[str, Any]], answers: Iterator[Any]) -> None:
    names = [*dict.fromkeys(name for row in rows for name in row), "answer", "confidence"]
    table = csv.DictWriter(file, names, extrasaction="ignore") if kind == "csv" else None
    if table is not None:
        table.writeheader()
    for row, answer in zip(rows, answers, strict=True):
        line = {**row, **_plain(answer)}
        if table is not None:
            table.writerow(line)
        else:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
