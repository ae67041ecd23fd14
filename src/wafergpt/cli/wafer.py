"""`wafergpt wafer`: plan, predict, report, simulate on a WSE-2. Every figure is modelled."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wafergpt.wafer.analytic.shape import Shape


def plan_run(
    name: Annotated[str, typer.Argument(help="111M to 13B, gpt2 to gpt2-xl, gpt3-125M to gpt3-175B, 175B.")],
    systems: Annotated[int, typer.Option(help="Systems that share the batch: 1 to 192 (WSE-3: 2048).")] = 1,
    batch: Annotated[
        int | None, typer.Option(help="Sequences per step over all systems.", show_default="the best batch")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Window, in tokens.", show_default="the model's")
    ] = None,
    arch: Annotated[str, typer.Option(help="WSE-2 or WSE-3 (extrapolated by its peak).")] = "WSE-2",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan the compute-optimal training of NAME.

    Modelled: fit, step, days, energy, scaling, best batch, inference.
    """
    from dataclasses import asdict
    from json import dumps

    from wafergpt.config import require
    from wafergpt.wafer.analytic.plan import lines, plan
    from wafergpt.wafer.arch import PRESETS, get_arch

    wafer = get_arch(arch)
    require(wafer.name in PRESETS, f"a plan needs a whole wafer: {', '.join(PRESETS)}; got {arch}")
    title, shape, window = _shape(name)
    window = _checked(window if seq_len is None else seq_len, batch)
    answer = plan(title, shape, seq_len=window, systems=systems, batch=batch, arch=wafer)
    print(dumps(asdict(answer), indent=2) if json else "\n".join(lines(answer)))


def predict_rows(
    rows: Annotated[Path, typer.Argument(help="CSV file of measurements to predict.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
) -> None:
    """Predict published measurements, the rows of a CSV file.

    Its columns are id, metric, model, shape, grid and others; the answer is a CSV file, too.
    """
    from wafergpt.config import require
    from wafergpt.errors import StorageError
    from wafergpt.wafer.analytic.predict import as_csv, predict
    from wafergpt.wafer.analytic.rows import read_rows

    is_same = out.exists() and rows.exists() and out.samefile(rows)
    require(not is_same, f"--out {out} would overwrite the rows: give another name")
    predictions = [predict(row) for row in read_rows(rows)]
    try:
        out.write_text(as_csv(predictions), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}") from None
    for one in predictions:
        figure = f"no figure: {one.reason}" if one.predicted is None else f"{one.predicted:.6g} {one.unit}"
        cycles = "" if one.cycles is None else f"  {one.cycles:,.0f} cycles"
        print(f"{one.id}  {one.metric}  {figure}{cycles}")
    n_missing = sum(one.predicted is None for one in predictions)
    print(f"{out}: {len(predictions)} rows, {n_missing} without a prediction; every figure is modelled")


def report_run(
    run: Annotated[str, typer.Argument(help="A model as for `plan`, or a report saved as JSON.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    systems: Annotated[int, typer.Option(help="Systems that share the batch.")] = 1,
    mode: Annotated[str, typer.Option(help="train, prefill or decode; one step of it.")] = "train",
    execution: Annotated[
        str | None,
        typer.Option(help="streaming or resident weights.", show_default="streaming to train, else resident"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Sequences over all systems.", show_default="the best to train, else one each"),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Window or context.", show_default="the model's")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder to write the figures to as PNG, too.", show_default="none")
    ] = None,
) -> None:
    """Write an HTML report of one modelled step on a WSE-2.

    It has numbers, figures, operators and assumptions.
    """
    from wafergpt.wafer.html import report_page
    from wafergpt.wafer.plots.pages import model_pictures, report_pictures, write
    from wafergpt.wafer.report import Report

    if run.endswith(".json"):
        report = Report.from_json(_text(Path(run)))
        shown = report_pictures(report)
    else:
        from wafergpt.wafer.analytic.plan import plan
        from wafergpt.wafer.analytic.price import price
        from wafergpt.wafer.workload import TransformerShape, describe_transformer

        title, shape, window = _shape(run)
        window = _checked(window if seq_len is None else seq_len, batch)
        answer = plan(title, shape, seq_len=window, systems=systems, batch=batch)
        rows = batch or (answer.batch if mode == "train" else systems)
        workload = describe_transformer(
            TransformerShape.of(title, shape, window), batch=rows, seq_len=window, mode=mode
        )
        execution = execution or ("streaming" if mode == "train" else "resident")
        report = price(workload, execution=execution, systems=systems)
        shown = report_pictures(report) + model_pictures(title, shape, context=window, scaling=answer.scaling)
    write(out, report_page(report, shown).encode())
    if pictures is not None:
        for one in shown:
            write(pictures / f"{one.name}.png", one.png)
    print("\n".join(line for line in report.lines() if not line.startswith(_EVIDENCE)))
    print(f"report: {out}")


def simulate_run(
    out: Annotated[Path, typer.Option(help="Folder to write the report, figures and timeline to.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; a token is a byte.")] = "The wafer",
    tokens: Annotated[int, typer.Option(help="New tokens; at most 65 with the prompt's.")] = 8,
) -> None:
    """Run a tiny GPT on 16 x 16 PEs, cycle by cycle.

    Its weights are random. The report shows what happened.
    """
    from wafergpt.wafer.machine import native
    from wafergpt.wafer.plots.pages import simulation_files, write
    from wafergpt.wafer.simulation import simulate

    if reason := native.available():
        print(f"note: NumPy does the work, some 10 s a token: {reason}", file=sys.stderr)
    run = simulate(prompt.encode(errors="surrogateescape"), tokens)  # any bytes: tokens are bytes
    for name, data in simulation_files(run).items():
        write(out / name, data)
    print("\n".join(line for line in run.report.lines() if not line.startswith(_EVIDENCE)))
    n_lost = sum(of_pe.n_lost for of_pe in run.recorded)
    if n_lost:
        print(f"note: the timeline lacks {n_lost:,} spans for which there was no room")
    print(f"report: {out / 'report.html'}")
    print(f"timeline: {out / 'trace.json'} (open it at ui.perfetto.dev; 1 us there is 1 cycle)")


def _checked(window: int, batch: int | None) -> int:
    """The window; raises ConfigError if it or the batch is out of range."""
    from wafergpt.config import require

    require(1 <= window <= 1_000_000, f"seq_len = {window} is out of range; allowed: 1 to 1,000,000")
    require(batch is None or batch <= 10**9, f"batch = {batch} is out of range; allowed: up to 1e9")
    return window


_EVIDENCE = ("published:", "derived:", "assumed:", "fitted:")


def _text(path: Path) -> str:
    from wafergpt.errors import DataError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None


def _shape(name: str) -> tuple[str, Shape, int]:
    """Title, shape and window of a published model of the family or of GPT-3."""
    from wafergpt.errors import ConfigError, did_you_mean
    from wafergpt.model import family
    from wafergpt.wafer.analytic.rows import GPT3_SHAPES, shape_of
    from wafergpt.wafer.analytic.shape import Shape

    size = name.strip().lower().replace("gpt-3", "gpt3").removeprefix("gpt3").lstrip("- ")
    by_size = {key.lower(): key for key in GPT3_SHAPES}
    is_family = any(known.lower() == name.strip().lower() for known in family.FAMILY)
    if size in by_size and not is_family:
        return f"GPT-3 {by_size[size]}", shape_of(GPT3_SHAPES[by_size[size]]), 2048
    try:
        member = family.get(name)
    except ConfigError:
        known = [*family.FAMILY, *(f"gpt3-{key}" for key in GPT3_SHAPES)]
        typed = re.sub(r"\d[mb]\b", lambda unit: unit[0].upper(), name.strip().lower())
        hint = did_you_mean(typed, known)
        raise ConfigError(f"unknown model '{name}'{hint or '; known: ' + ', '.join(known)}") from None
    return member.name, Shape.of(member.config), member.config.max_seq_len
