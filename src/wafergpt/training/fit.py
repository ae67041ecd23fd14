"""The standard caller of the loop: show, log, evaluate, sample, save, resume, stop cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from wafergpt.checkpoints.native import Checkpoint
from wafergpt.errors import CheckpointError, MissingDependencyError, NonFiniteError
from wafergpt.model.gpt import GPT
from wafergpt.ops import dispatch
from wafergpt.training import distributed, loop, metrics, optim, plots
from wafergpt.training.allocator import keep_freed_memory
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.training.display import Display
from wafergpt.training.environment import fingerprint
from wafergpt.training.held_out import Loss
from wafergpt.training.job import Job, Pretraining
from wafergpt.training.metrics import Throughput
from wafergpt.training.peak import measure_matmul_peak
from wafergpt.training.report import StepReport
from wafergpt.training.run_files import RunFiles
from wafergpt.training.run_folder import Provenance
from wafergpt.training.signals import Interrupted, StopSignals
from wafergpt.training.step import Trainer
from wafergpt.training.tensorboard import writer_class
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
    held_out: Loss | None  # over all held-out text; None when the data has none
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
    return run(config, lambda: Pretraining(config, folder), resume=resume, sampler=sampler, options=options)


def run(
    config: TrainConfig,
    open_job: Callable[[], Job],
    *,
    resume: bool = False,
    sampler: Sampler | None = None,
    options: FitOptions | None = None,
) -> FitResult:
    """As `fit`, whatever is trained: `open_job` is called once the process knows its place."""
    options = options or FitOptions()
    if options.tensorboard:
        writer_class()  # what is missing is said before the folder is claimed
    keep_freed_memory()  # before the first large tensor
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(distributed.join(config.device))
        job = open_job()
        if world.is_first:
            stack.enter_context(job.folder.claim(resume=resume))
        world.total([0.0])  # the others wait for the claim before they look for checkpoints
        checkpoint = job.folder.newest_checkpoint() if resume else None
        step = checkpoint.step if checkpoint else 0
        if world.mean(float(step)) != step:
            raise CheckpointError(
                f"the processes of this run found different checkpoints in '{job.folder.path}'"
            )
        provenance = Provenance(environment=fingerprint(world), data_fingerprint=job.data_fingerprint)
        report = job.folder.compare(checkpoint, provenance) if checkpoint else None
        lines = (
            [line for line in metrics.read(job.folder.metrics_path) if line["step"] <= step] if resume else []
        )
        trainer = job.prepare(checkpoint, world, lines)
        if report is not None and not report.bit_exact:
            trainer.state.bit_exact = False
        console = options.console if world.is_first else None
        display = Display(console, config, trainer.state.step)
        files = None
        if world.is_first:
            files = stack.enter_context(RunFiles(job.folder, checkpoint, options.tensorboard))
        training = _Run(trainer, job, provenance, display, files, options)
        training.announce(checkpoint, report.notices if report else ())
        signals = stack.enter_context(StopSignals(trainer.request_stop))
        with display:
            return training.train(signals, sampler)


class _Run:
    """One call of `run` from the first step to the last; `files` is None in all processes but the first."""

    def __init__(
        self,
        trainer: Trainer,
        job: Job,
        provenance: Provenance,
        display: Display,
        files: RunFiles | None,
        options: FitOptions,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.job = job
        self.folder = job.folder
        self.provenance = provenance
        self.display = display
        self.files = files
        self.options = options
        self.rate = Throughput()
        self.saved: Path | None = None
        self.last_loss: Loss | None = None
        self._saved_step = -1

    def announce(self, checkpoint: Checkpoint | None, notices: tuple[str, ...]) -> None:
        """Say where the run starts and what is unusual about it; measure the machine's matmul peak."""
        step = self.trainer.state.step
        if checkpoint is not None:
            self.saved, self._saved_step = checkpoint.path, checkpoint.step
            self._tell("resumed", f"resuming at step {step} from {checkpoint.path}")
        else:
            self._tell("started", f"training {self.job.describe()} into {self.folder.path}")
            if self.config.start_from is not None:
                took_over = f"weights, moments and place in the data are those of '{self.config.start_from}'"
                self._tell("notice", f"{took_over}; the step counter starts at {step}")
        for notice in (*notices, *self.job.notices()):
            self._tell("notice", notice)
        if self.config.precision is Precision.BF16 and not dispatch.bf16_supported():
            self.display.notice("this machine emulates bfloat16 products; fp32 is faster here")
        if self.options.measure_peak:
            peak = measure_matmul_peak(self.config.precision, self.trainer.world.device)
            self.display.peak_flops = self.trainer.world.total([peak])[0]
            self.display.notice(f"matmul peak of this machine: {format_flops(self.display.peak_flops, True)}")

    def _tell(self, event: str, text: str) -> None:
        self.display.notice(text)
        if self.files is not None:
            self.files.event(self.trainer.state.step, event, text)

    def train(self, signals: StopSignals, sampler: Sampler | None) -> FitResult:
        """Run the loop to its end. Raises Interrupted after a signal, once everything is saved."""
        reason = self.job.stop_reason()
        try:
            for report in loop.steps(self.config, self.trainer) if reason is None else ():
                self._log_step(report)
                is_last = report.step == self.config.schedule.last_step
                if not is_last and _is_due(report.step, self.config.eval_every):
                    self._evaluate(self.config.eval_tokens)
                    reason = self.job.stop_reason()
                if _is_due(report.step, self.config.sample_every):
                    self._sample(sampler)
                if is_last or reason is not None or _is_due(report.step, self.config.save_every):
                    self._save()
                if reason is not None:
                    break
        except NonFiniteError as error:
            self._tell("stopped", str(error))
            raise
        if reason is None and self.trainer.state.step < self.config.schedule.last_step:
            self._leave(signals)
        held_out = self._final_evaluation() if reason is None else self.last_loss
        if reason is not None:
            self._tell("stopped early", reason)
        self._plot()
        for notice in self.job.finish(self.trainer):
            self._tell("notice", notice)
        state = self.trainer.state
        checkpoint = self.saved or self.folder.store.paths()[0]  # the first process saved before it evaluated
        self._tell("finished", f"finished at step {state.step}: {checkpoint}")
        return FitResult(
            folder=self.folder.path,
            checkpoint=checkpoint,
            total_tokens=self.trainer.total_tokens,
            n_skipped=state.n_skipped,
            bit_exact=state.bit_exact,
            held_out=held_out,
            elapsed_s=self.files.elapsed_s if self.files else 0.0,
            peak_flops=self.display.peak_flops,
        )

    def _log_step(self, report: StepReport) -> None:
        self.rate.add(report.n_tokens, report.elapsed_s)
        self.display.step(report, self.rate.tokens_per_s)
        if self.files is not None:
            self.files.elapsed_s += report.elapsed_s
            tokens_per_s = report.n_tokens / report.elapsed_s
            self.files.line(metrics.step_line(report, self.files.elapsed_s, tokens_per_s))

    def _evaluate(self, max_tokens: int | None, **marks: bool) -> Loss | None:
        """Evaluate on held-out text and log it; every process takes part."""
        if self.job.held_out is None:
            return None
        trainer = self.trainer
        loss = self.job.held_out.loss(trainer.model, trainer.world, self.config.micro_batch_size, max_tokens)
        self.last_loss = loss
        self.display.held_out(trainer.state.step, loss)
        ceiling = optim.epsilon_ceiling(trainer.state, self.config.optim)
        if self.files is not None:
            self.files.line(
                {
                    "step": trainer.state.step,
                    "total_tokens": trainer.total_tokens,
                    **loss.to_line(),
                    "adam_eps_ceiling": metrics.plain(ceiling),
                    **marks,
                }
            )
        if self.config.optim.eps > ceiling:
            rule = f"optim.eps = {self.config.optim.eps:g} is above sqrt(mean of v)/1000 = {ceiling:.1e}"
            self._tell("notice", f"{rule}, so it slows Adam down; use a smaller one in the next run")
        self.job.judged(trainer, loss)
        return loss

    def _final_evaluation(self) -> Loss | None:
        """Evaluate on all held-out text, unless an earlier call of a finished run has done so."""
        line = self.files.final if self.files else None
        if not self.trainer.world.any(line is not None):
            return self._evaluate(None, final=True)
        if line is None or self.job.held_out is None:
            return None
        return self.job.held_out.from_line(line)

    def _sample(self, sampler: Sampler | None) -> None:
        if sampler is None or self.files is None or self.files.samples is None:
            return
        with torch.no_grad():
            texts = sampler(self.trainer.model, self.trainer.state.step)
        self.display.samples(self.trainer.state.step, texts)
        self.files.samples.append({"step": self.trainer.state.step, "texts": texts})

    def _save(self) -> None:
        step = self.trainer.state.step
        if self.files is None or step == self._saved_step:
            return
        # Lines first: a log that knows more than the checkpoint is cut, one that knows less has a hole.
        self.files.sync()
        self.saved, self._saved_step = self.folder.save(self.trainer.state, self.provenance), step

    def _plot(self) -> None:
        if self.files is None or not self.options.plot:
            return
        model = self.config.model
        title = f"{format_count(model.n_params)} parameters, {model.parametrization.value}"
        if not any(line.get("loss") is not None for line in metrics.read(self.folder.metrics_path)):
            return
        try:
            plots.save_loss_curve(self.folder.metrics_path, self.folder.curve_path, title, self.job.loss_unit)
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
