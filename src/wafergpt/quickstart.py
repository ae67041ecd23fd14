"""`wafergpt quickstart`: text -> tokenizer -> shards -> pre-training -> evaluation -> report, in one call.

It only wires parts together: `runs.quickstart` says what, the packages do it. Layer: beside `api`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from wafergpt import api, quickstart_wafer
from wafergpt.checkpoints.files import write_atomic
from wafergpt.data.config import HeldOut, HeldOutMode, PrepareConfig
from wafergpt.errors import MissingDependencyError
from wafergpt.evaluation.report import EvaluationReport
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.model.config import GPTConfig
from wafergpt.quickstart_report import WAFER_PAGE, Facts, SourceText, write_report
from wafergpt.quickstart_wafer import WaferView
from wafergpt.runs.quickstart import QuickstartConfig, departures, train_config
from wafergpt.training.config import Precision
from wafergpt.units import format_bytes, format_count, format_duration
from wafergpt.wafer.analytic.plan import plan
from wafergpt.wafer.analytic.shape import Shape


@dataclass(kw_only=True)
class Clock:
    """Wall time of each named part, in order."""

    parts_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.parts_s[name] = self.parts_s.get(name, 0.0) + time.perf_counter() - started


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ... if something is there: a second demo loses nothing."""
    candidate, number = wanted, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate


def quickstart(config: QuickstartConfig, folder: Path, console: Console) -> Path:
    """Run all of it in `folder` (see `free_folder`); returns the path of the report.

    Raises what its parts raise: AssetError offline without the corpus, StorageError, Interrupted, ...
    """
    clock = Clock()
    data = folder / "data"
    with clock.part("fetch and tokenise"):
        source = _prepare(config, data, console)
        console.print(f"text: {source.description}; licence: {source.licence}")
    with clock.part("measure speed"):
        precision, steps_per_s, rates = choose_precision(config, data)
        for name, tokens_per_s in rates.items():
            console.print(f"speed in {name}: {format_count(tokens_per_s)} tokens/s")
    run = train_config(
        config, data=data, precision=precision, total_steps=max(2, int(steps_per_s * config.training_s))
    )
    console.print(
        f"schedule: {run.schedule.total_steps} steps in {run.precision.value},"
        f" about {format_duration(config.training_s)} of training"
    )
    with clock.part("train"):
        result = api.train(run, folder / "run", sampler=_sampler(config, data))
    with clock.part("evaluate"):
        loaded = api.load(folder / "run")
        evaluation = api.evaluate(loaded, [data], stride=config.model.max_seq_len // 4, baselines=True)
    with clock.part("write samples"):
        samples = tuple(
            (prompt, loaded.generate(prompt, _sampling(config)).text) for prompt in config.prompts
        )
    with clock.part("look at it on a wafer"):
        view = quickstart_wafer.look(
            run.model, batch_size=run.batch_size, step_s=result.elapsed_s / run.schedule.total_steps
        )
        write_atomic(folder / WAFER_PAGE, wafer_page(view, run.model).encode())
    facts = Facts(
        config=config,
        run=run,
        source=source,
        rates_tokens_per_s=rates,
        evaluation=evaluation,
        samples=samples,
        departures=departures(run, source.n_train_tokens),
        peak_flops=result.peak_flops,
        trained_s=result.elapsed_s,
        n_skipped=result.n_skipped,
        parts_s=clock.parts_s,
        wafer=view,
    )
    report = write_report(folder, facts)
    _show(console, evaluation, samples)
    show_wafer(console, view)
    console.print(f"\ntook {format_duration(sum(clock.parts_s.values()))} in all", highlight=False)
    return report


def _prepare(config: QuickstartConfig, data: Path, console: Console) -> SourceText:
    held_out = HeldOut(
        mode=HeldOutMode.BLOCKS, every=config.held_out_every, block_chars=config.held_out_block_chars
    )
    with console.status("fetching and tokenising") as status:
        prepared = api.prepare(
            PrepareConfig(
                sources=(f"asset:{config.corpus}",),
                output=data,
                tokenizer=f"train:{config.vocab_size}",
                held_out=held_out,
            ),
            lambda progress: status.update(f"{progress.phase}: {format_bytes(progress.read_bytes)}"),
        )
    assert prepared.held_out is not None, "blocks were asked for"
    return SourceText(
        description=", ".join(source.name for source in prepared.train.sources),
        licence=", ".join(source.licence for source in prepared.train.sources),
        n_train_tokens=prepared.train.n_tokens,
        n_held_out_tokens=prepared.held_out.n_tokens,
    )


def _sampling(config: QuickstartConfig) -> SamplingConfig:
    return SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=config.sample_tokens, seed=config.seed)


def choose_precision(config: QuickstartConfig, data: Path) -> tuple[Precision, float, dict[str, float]]:
    """(the fastest precision, its steps/s, tokens/s of each), each tried for its share of `rate_s`."""
    from wafergpt.training import loop

    run = train_config(config, data=data, precision=Precision.FP32, total_steps=1_000_000)
    rates = loop.measure_precisions(run, config.rate_s)
    best = max(rates, key=lambda precision: rates[precision])
    tokens_per_step = config.batch_size * config.model.max_seq_len
    return best, rates[best] / tokens_per_step, {p.value: rate for p, rate in rates.items()}


def _sampler(config: QuickstartConfig, data: Path) -> api.Sampler:
    """Text from the model in training, for the live display."""
    return api.make_sampler(data, config.prompts[:1], _sampling(config))


def wafer_page(view: WaferView, model: GPTConfig) -> str:
    """The HTML page, with its figures where matplotlib is there to draw them."""
    try:
        from wafergpt.wafer.plots.pages import model_pictures, report_pictures
    except MissingDependencyError as error:
        return quickstart_wafer.page(view, [], str(error))
    name, shape = quickstart_wafer.NAME, Shape.of(model)
    scaling = plan(name, shape, seq_len=model.max_seq_len).scaling
    shown = report_pictures(view.steps[0])
    shown += model_pictures(name, shape, context=model.max_seq_len, scaling=scaling)
    return quickstart_wafer.page(view, shown)


def show_wafer(console: Console, view: WaferView) -> None:
    """Print the wafer's view of the model and of the published sizes."""
    console.print()
    for table in quickstart_wafer.tables(view):
        console.print(table)
    console.print(quickstart_wafer.NOTE, highlight=False)


def _show(console: Console, evaluation: EvaluationReport, samples: tuple[tuple[str, str], ...]) -> None:
    console.print()
    for row in sorted(evaluation.rows, key=lambda row: row.bits_per_byte):
        console.print(f"{row.bits_per_byte:8.4f} bits/byte  {row.name}")
    for prompt, text in samples:
        console.print(f"\n[bold]{prompt}[/bold]{text}", markup=True, highlight=False)
