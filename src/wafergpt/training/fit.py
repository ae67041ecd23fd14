"""The standard caller of the loop: show, log, evaluate, sample, save, resume, stop cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from wafergpt.checkpoints.native import Checkpoint
from wafergpt.errors import CheckpointError, MissingDependencyError, NonFiniteError
from wafergpt.model.gpt import GPT
from wafergpt.training import distributed, loop, metrics, optim, plots
from wafergpt.training.allocator import keep_freed_memory
from wafergpt.training.config import TrainConfig
from wafergpt.training.display import Display
from wafergpt.training.environment import fingerprint
from wafergpt.training.held_out import HeldOut, HeldOutLoss, open_held_out
from wafergpt.training.metrics import StepLog, Throughput
from wafergpt.training.peak import measure_matmul_peak
from wafergpt.training.report import StepReport
from wafergpt.training.run_folder import Provenance, RunFolder
from wafergpt.training.signals import Interrupted, StopSignals
from wafergpt.training.step import Trainer
from wafergpt.training.tensorboard import TensorBoard, writer_class
from wafergpt.units import format_count, format_flops

Sampler = Callable[[GPT, int], list[str]]  # (model, step) -> texts; must leave the model as it was


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a run is shown; none of it changes a weight."""

    console: Console | None = field(default_factory=Console)  # None: silent
    tensorboard: bool = False
    plot: bool = True
    measure_peak: bool = True


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run."""

    folder: Path
    checkpoint: Path  # of the last step
    total_tokens: int
    n_skipped: int
    bit_exact: bool
    held_out: HeldOutLoss | None  # over all held-out text; None when the data has none
    elapsed_s: float  # time spent in steps, over all resumes
    peak_flops: float | None  # measured matmul peak, FLOP/s over all processes


def fit(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    sampler: Sampler | None = None,
    options: FitOptions | None = None,
) -> FitResult:
    """Train `config` in the run folder `folder` to its last step; with `resume`, go on where it stopped.

    Raises Interrupted after a signal (everything saved), ConfigError, DataError, CheckpointError,
    RunLockedError, StorageError, NonFiniteError; after each the last checkpoint is intact.
    """
    options = options or FitOptions()
    if options.tensorboard:
        writer_class()  # what is missing is said before the folder is claimed
    keep_freed_memory()  # before the first large tensor
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(distributed.join(config.device))
        batches, held_out = loop.open_batches(config), open_held_out(config)
        run_folder = RunFolder(folder, config)
        if world.is_first:
            stack.enter_context(run_folder.claim(resume=resume))
        world.total([0.0])  # the others wait for the claim before they look for checkpoints
        checkpoint = run_folder.newest_checkpoint() if resume else None
        step = float(checkpoint.step) if checkpoint else 0.0
        if world.mean(step) != step:
            raise CheckpointError(f"the processes of this run found different checkpoints in '{folder}'")
        provenance = Provenance(environment=fingerprint(world), data_fingerprint=batches.shards.fingerprint)
        report = run_folder.compare(checkpoint, provenance) if checkpoint else None
        trainer = loop.prepare(config, batches=batches, checkpoint=checkpoint, world=world)
        if report is not None and not report.bit_exact:
            trainer.state.bit_exact = False
        console = options.console if world.is_first else None
        display = Display(console, config, trainer.state.step)
        records = stack.enter_context(Records(run_folder, checkpoint, options)) if world.is_first else None
        run = _Run(trainer, run_folder, provenance, held_out, display, records)
        run.announce(checkpoint, report.notices if report else (), batches.shards.vocab_size, options)
        signals = stack.enter_context(StopSignals(trainer.request_stop))
        with display:
            return run.train(signals, sampler)


class Records:
    """The files the first process writes while training: metrics, events, samples, TensorBoard."""

    def __init__(self, folder: RunFolder, checkpoint: Checkpoint | None, options: FitOptions) -> None:
        step = checkpoint.step if checkpoint else 0
        self.folder = folder
        self.options = options
        self._stack = contextlib.ExitStack()
        folder.write_config()
        done = [line for line in metrics.read(folder.metrics_path) if line["step"] <= step]
        self.elapsed_s: float = max((line.get("elapsed_s", 0.0) for line in done), default=0.0)
        self.final: dict[str, Any] | None = next(
            (line for line in done if line.get("final") and line["step"] == folder.config.schedule.last_step),
            None,
        )
        self.metrics = self._stack.enter_context(StepLog(folder.metrics_path, step))
        self.samples = (
            self._stack.enter_context(StepLog(folder.samples_path, step))
            if folder.config.sample_every or folder.samples_path.exists()
            else None
        )
        self.events = self._stack.enter_context(folder.open_events())
        self.tensorboard = (
            self._stack.enter_context(TensorBoard(folder.path / "tensorboard", first_step=step + 1))
            if options.tensorboard
            else None
        )

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sync(self) -> None:
        """Make every line durable."""
        self.metrics.sync()
        if self.samples is not None:
            self.samples.sync()

    def line(self, line: dict[str, Any]) -> None:
        """Append a metrics line."""
        self.metrics.append(line)
        if self.tensorboard is not None:
            self.tensorboard.add(line)

    def event(self, step: int, name: str, detail: str = "") -> None:
        """Append to the run's history."""
        self.events.append({"step": step, "event": name, "detail": detail})


class _Run:
    """One call of `fit` from the first step to the last; `records` is None in all processes but the first."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        provenance: Provenance,
        held_out: HeldOut | None,
        display: Display,
        records: Records | None,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.folder = folder
        self.provenance = provenance
        self.held_out = held_out
        self.display = display
        self.records = records
        self.rate = Throughput()
        self.saved: Path | None = None
        self._saved_step = -1

    def announce(
        self,
        checkpoint: Checkpoint | None,
        notices: tuple[str, ...],
        data_vocab_size: int,
        options: FitOptions,
    ) -> None:
        """Say where the run starts and what is unusual about it; measure the machine's matmul peak."""
        step = self.trainer.state.step
        if checkpoint is not None:
            self.saved, self._saved_step = checkpoint.path, checkpoint.step
            self._tell("resumed", f"resuming at step {step} from {checkpoint.path}")
        else:
            n_params, n_tokens = self.config.model.n_params, self.config.total_tokens
            size = f"{format_count(n_params)} parameters on {format_count(n_tokens)} tokens"
            self._tell("started", f"training {size} into {self.folder.path}")
            if self.config.start_from is not None:
                took_over = f"weights, moments and place in the data are those of '{self.config.start_from}'"
                self._tell("notice", f"{took_over}; the step counter starts at {step}")
        for notice in notices:
            self._tell("notice", notice)
        vocab_size = self.config.model.vocab_size
        if data_vocab_size < vocab_size:
            unused = f"the model's vocabulary has {vocab_size} entries, the data's {data_vocab_size}"
            self._tell("notice", f"{unused}; the rest is never used")
        if self.held_out is None:
            self._tell("notice", "the data has no held-out part, so nothing is evaluated")
        if options.measure_peak:
            peak = measure_matmul_peak(self.config.precision, self.trainer.world.device)
            self.display.peak_flops = self.trainer.world.total([peak])[0]
            self.display.notice(f"matmul peak of this machine: {format_flops(self.display.peak_flops, True)}")

    def _tell(self, event: str, text: str) -> None:
        self.display.notice(text)
        if self.records is not None:
            self.records.event(self.trainer.state.step, event, text)

    def train(self, signals: StopSignals, sampler: Sampler | None) -> FitResult:
        """Run the loop to its end. Raises Interrupted after a signal, once everything is saved."""
        try:
            for report in loop.steps(self.config, self.trainer):
                self._log_step(report)
                is_last = report.step == self.config.schedule.last_step
                if not is_last and _is_due(report.step, self.config.eval_every):
                    self._evaluate(self.config.eval_tokens)
                if _is_due(report.step, self.config.sample_every):
                    self._sample(sampler)
                if is_last or _is_due(report.step, self.config.save_every):
                    self._save()
        except NonFiniteError as error:
            self._tell("stopped", str(error))
            raise
        if self.trainer.state.step < self.config.schedule.last_step:
            self._leave(signals)
        held_out = self._final_evaluation()
        self._plot()
        state = self.trainer.state
        checkpoint = self.saved or self.folder.store.paths()[0]  # the first process saved before it evaluated
        self._tell("finished", f"finished at step {state.step}: {checkpoint}")
        return FitResult(
            folder=self.folder.path,
            checkpoint=checkpoint,
            total_tokens=state.sample_index * self.config.data.seq_len,
            n_skipped=state.n_skipped,
            bit_exact=state.bit_exact,
            held_out=held_out,
            elapsed_s=self.records.elapsed_s if self.records else 0.0,
            peak_flops=self.display.peak_flops,
        )

    def _log_step(self, report: StepReport) -> None:
        self.rate.add(report.n_tokens, report.elapsed_s)
        self.display.step(report, self.rate.tokens_per_s)
        if self.records is not None:
            self.records.elapsed_s += report.elapsed_s
            tokens_per_s = report.n_tokens / report.elapsed_s
            self.records.line(metrics.step_line(report, self.records.elapsed_s, tokens_per_s))

    def _evaluate(self, max_tokens: int | None, **marks: bool) -> HeldOutLoss | None:
        """Evaluate on held-out text and log it; every process takes part."""
        if self.held_out is None:
            return None
        trainer = self.trainer
        loss = self.held_out.loss(trainer.model, trainer.world, self.config.micro_batch_size, max_tokens)
        self.display.held_out(trainer.state.step, loss)
        ceiling = optim.epsilon_ceiling(trainer.state, self.config.optim)
        if self.records is not None:
            self.records.line(
                {
                    "step": trainer.state.step,
                    "total_tokens": trainer.state.sample_index * self.config.data.seq_len,
                    "held_out_nats_per_token": metrics.plain(loss.nats_per_token),
                    "held_out_bits_per_byte": metrics.plain(loss.bits_per_byte),
                    "held_out_tokens": loss.n_tokens,
                    "adam_eps_ceiling": metrics.plain(ceiling),
                    **marks,
                }
            )
        if self.config.optim.eps > ceiling:
            rule = f"optim.eps = {self.config.optim.eps:g} is above sqrt(mean of v)/1000 = {ceiling:.1e}"
            self._tell("notice", f"{rule}, so it slows Adam down; use a smaller one in the next run")
        return loss

    def _final_evaluation(self) -> HeldOutLoss | None:
        """Evaluate on all held-out text, unless an earlier call of a finished run has done so."""
        line = self.records.final if self.records else None
        if not self.trainer.world.any(line is not None):
            return self._evaluate(None, final=True)
        if line is None:
            return None
        return HeldOutLoss(
            nats_per_token=line["held_out_nats_per_token"],
            bits_per_byte=line["held_out_bits_per_byte"],
            n_tokens=line["held_out_tokens"],
        )

    def _sample(self, sampler: Sampler | None) -> None:
        if sampler is None or self.records is None or self.records.samples is None:
            return
        with torch.no_grad():
            texts = sampler(self.trainer.model, self.trainer.state.step)
        self.display.samples(self.trainer.state.step, texts)
        self.records.samples.append({"step": self.trainer.state.step, "texts": texts})

    def _save(self) -> None:
        step = self.trainer.state.step
        if self.records is None or step == self._saved_step:
            return
        # Lines first: a log that knows more than the checkpoint is cut, one that knows less has a hole.
        self.records.sync()
        self.saved, self._saved_step = self.folder.save(self.trainer.state, self.provenance), step

    def _plot(self) -> None:
        if self.records is None or not self.records.options.plot:
            return
        model = self.config.model
        title = f"{format_count(model.n_params)} parameters, {model.parametrization.value}"
        if not any(line.get("loss") is not None for line in metrics.read(self.folder.metrics_path)):
            return
        try:
            plots.save_loss_curve(self.folder.metrics_path, self.folder.curve_path, title)
        except MissingDependencyError as error:
            self._tell("notice", f"no loss curve drawn: {error}")

    def _leave(self, signals: StopSignals) -> None:
        """Save after a stop request and raise Interrupted."""
        number = signals.received or signal.SIGTERM  # another process may be the one that was told
        self._save()
        self._plot()
        step = self.trainer.state.step
        text = f"{signal.Signals(number).name}: stopped after step {step}, saved in {self.folder.path};" \
               " go on with --resume"  # fmt: skip
        self._tell("interrupted", text)
        raise Interrupted(text, int(number))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
