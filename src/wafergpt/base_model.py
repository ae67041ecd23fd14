"""`wafergpt train base`: corpora -> a mix without tests -> shards -> a schedule for this machine -> a card.

It only wires parts together: `runs.base` says what, `data.mix` makes the text, `api.train` trains. The data
lie beside the run: DATA/text (the mix and its report), DATA/tokens (what `wafergpt prepare` makes of it).
Layer: beside `api`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

from wafergpt import api
from wafergpt.checkpoints.files import write_atomic
from wafergpt.config import require
from wafergpt.data.config import HeldOut, HeldOutMode, PrepareConfig
from wafergpt.data.mix import REPORT_NAME, MixReport, write_mix
from wafergpt.data.overlap import RUN_WORDS
from wafergpt.data.publish import published
from wafergpt.data.shards import Manifest
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.runs import base as runs
from wafergpt.runs.base import BaseConfig
from wafergpt.training import loop
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.units import format_count, format_duration

CARD_NAME = "README.md"
_MIX, _TOKENS = "text", "tokens"
Say = Callable[[str], None]


def configured() -> BaseConfig:
    """The base, or the toy of it where WAFERGPT_SMOKE asks for small sizes."""
    return runs.smoke() if os.environ.get("WAFERGPT_SMOKE", "0") not in ("", "0") else runs.base()


def data_of(out: Path) -> Path:
    """Where the data of the run `out` go when no folder is named."""
    return out.with_name(f"{out.name}-data")


def tokens_of(data: Path) -> Path:
    """The prepared folder in the base's data folder."""
    return data / _TOKENS


def plan(config: BaseConfig, data: Path, say: Say) -> TrainConfig:
    """The run for this machine; makes the data in `data` unless they are there, and measures speeds.

    Raises AssetError for a corpus or test set that cannot be fetched, ConfigError, DataError, StorageError.
    """
    require(
        os.environ.get("WORLD_SIZE", "1") == "1",
        "the base is planned by one process: write its config without torchrun (--dry-run), then train that",
    )
    report = _mix(config, data / _MIX, say)
    say(overlap_table(report))
    manifest = _tokens(config, report, data, say)
    run = _fitted(config, tokens_of(data), say)
    passes = f"{run.total_tokens / manifest.n_tokens:.1f} passes over {manifest.n_tokens:,} tokens"
    duration = format_duration(config.training_s)
    steps = f"{run.schedule.total_steps:,} steps in {run.precision.value}"
    say(f"schedule: {steps}, {passes}, about {duration} of training")
    return run


def overlap_table(report: MixReport) -> str:
    """How many runs of words each test shares with the mix, before and after they were taken out."""
    rows = [f"{'test set':<16} {f'{RUN_WORDS}-grams':>9} {'in the corpora':>15} {'in the mix':>11}"]
    rows += [
        f"{name:<16} {of.n_runs:>9,} {of.n_found:>15,} {of.n_left:>11,}" for name, of in report.tests.items()
    ]
    return "\n".join(rows if report.tests else ["no test sets were withheld"])


def is_mix(run: TrainConfig) -> bool:
    """Whether the run reads a mix that `plan` made."""
    return (run.data.path.parent / _MIX / REPORT_NAME).is_file()


def write_card(folder: Path, run: TrainConfig) -> Path:
    """Evaluate the finished run in `folder` on all held-out text and write its README.md; returns its path.

    Raises what `api.load` and `api.evaluate` raise.
    """
    report = MixReport.load(run.data.path.parent / _MIX)
    loaded = api.load(folder)
    row = api.evaluate(loaded, [run.data.path], stride=run.data.seq_len).rows[0]
    sampling = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=60, seed=0)
    samples = [(prompt, loaded.generate(prompt, sampling).text) for prompt in configured().prompts]
    loss = f"{row.nats_per_token:.4f} nats/token, {row.bits_per_byte:.4f} bits/byte"
    text = "\n".join([_head(run, loss), _data(report), _tests(report), _samples(samples)])
    write_atomic(folder / CARD_NAME, text.encode())
    return folder / CARD_NAME


# -- data


def _mix(config: BaseConfig, folder: Path, say: Say) -> MixReport:
    if (folder / REPORT_NAME).is_file():
        say(f"the mix in '{folder}' is there already")
        return MixReport.load(folder)
    say(f"making the mix of {', '.join(config.corpora)}")
    with published(folder) as work:
        return write_mix(config.corpora, config.tests, work)


def _tokens(config: BaseConfig, report: MixReport, data: Path, say: Say) -> Manifest:
    folder = tokens_of(data)
    if not (folder / "train").is_dir():
        say(f"tokenising with a vocabulary of {config.vocab_size:,} entries")
        api.prepare(
            PrepareConfig(
                sources=tuple(str(data / _MIX / file) for file in report.files),
                output=folder,
                tokenizer=f"train:{config.vocab_size}",
                held_out=HeldOut(mode=HeldOutMode.DOCUMENTS, every=config.held_out_every),
                licence="; ".join(counts.licence for counts in report.corpora.values()),
            )
        )
    return Manifest.load(folder / "train")


def _fitted(config: BaseConfig, data: Path, say: Say) -> TrainConfig:
    """The run of the largest model that reads enough in the time, in the precision that is fastest here."""
    for model in config.models:
        probe = runs.train_config(config, model, data=data, precision=Precision.FP32, total_steps=1_000_000)
        rates = loop.measure_precisions(probe, config.rate_s)
        best = max(rates, key=lambda precision: rates[precision])
        speeds = ", ".join(f"{precision.value} {rate:,.0f}" for precision, rate in rates.items())
        n_tokens = rates[best] * config.training_s
        per_param = n_tokens / model.n_params
        say(
            f"{format_count(model.n_params)} parameters: {speeds} tokens/s,"
            f" {per_param:.1f} tokens a parameter (wanted: {config.tokens_per_param:g})"
        )
        if per_param >= config.tokens_per_param:
            break
    total_steps = max(2, int(n_tokens / probe.tokens_per_step))
    return runs.train_config(config, model, data=data, precision=best, total_steps=total_steps)


# -- the card


def _head(run: TrainConfig, loss: str) -> str:
    model, manifest = run.model, Manifest.load(run.data.path / "train")
    passes = run.total_tokens / manifest.n_tokens
    shape = f"{model.n_layers} layers, d_model {model.d_model}, {model.n_heads} heads"
    steps = f"{run.schedule.total_steps:,} of {run.tokens_per_step:,} tokens, {run.precision.value}"
    rows = {
        "model": f"{shape}, {model.max_seq_len} positions, {model.parametrization.value}",
        "vocabulary": f"{model.vocab_size:,} entries, byte-level BPE trained on the mix",
        "trained on": f"{run.total_tokens:,} tokens: {passes:.2f} passes over {manifest.n_tokens:,}",
        "steps": f"{steps}, base learning rate {run.optim.peak_lr:g}",
        "held out": f"{loss}, on documents it has not read",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""\
# A small English base model

A GPT of {format_count(model.n_params)} parameters, pre-trained to be fine-tuned. **It is small**: it writes
English sentences, knows next to nothing, and answers nothing before it is fine-tuned. What it has read is in
part centuries old, and the chat of strangers is at times rude; so may be what it writes.

| | |
|---|---|
{table}
"""


def _data(report: MixReport) -> str:
    rows = [
        f"| {name} | {of.licence} | {of.n_documents:,} | {of.n_words:,} | {of.n_withheld:,} |"
        f" {of.n_overlapping:,} | {of.n_repeated_paragraphs:,} + {of.n_repeated_documents:,} |"
        for name, of in report.corpora.items()
    ]
    return """\
## What it has read

| corpus | package and licence | documents | words | withheld | overlapping sentences | repeats |
|---|---|---:|---:|---:|---:|---:|
{rows}

Withheld: documents that belong to a test of a task. Overlapping: sentences taken out because they share
{n} words in a row with a test. Repeats left out: paragraphs + documents. None of the text is in this folder.
""".format(rows="\n".join(rows), n=RUN_WORDS)


def _tests(report: MixReport) -> str:
    return f"## What it has not read\n\n```text\n{overlap_table(report)}\n```\n"


def _samples(samples: list[tuple[str, str]]) -> str:
    blocks = "\n\n".join(f"**{prompt}**{text}" for prompt, text in samples)
    return f"## What it writes\n\nTemperature 0.7, top-p 0.9, seed 0.\n\n{blocks}\n"
