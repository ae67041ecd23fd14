"""What a person sees of a run: one live line with a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from wafergpt.model.config import FlopsConvention
from wafergpt.training.config import TrainConfig
from wafergpt.training.held_out import Loss
from wafergpt.training.report import StepReport
from wafergpt.units import format_count, format_duration


class _StatusColumn(ProgressColumn):
    """The text that `Display` composes, cut at the terminal's edge."""

    def render(self, task: Task) -> Text:
        """The task's status."""
        return Text(str(task.fields["status"]), overflow="ellipsis", no_wrap=True)


class Display:
    """Shows steps, held-out losses, samples and notices on `console`; with None it shows nothing.

    `peak_flops` is the machine's measured matmul peak over all processes (None: the share is not shown).
    """

    def __init__(self, console: Console | None, config: TrainConfig, first_step: int) -> None:
        self.config = config
        self.peak_flops: float | None = None
        self._console = console or Console(quiet=True)
        self._is_live = console is not None and console.is_terminal
        self._held_out: Loss | None = None
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            _StatusColumn(),
            console=self._console,
            disable=not self._is_live,
        )
        self._task = self._progress.add_task(
            "training", total=config.schedule.last_step, completed=first_step, status="first step ..."
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, report: StepReport, tokens_per_s: float) -> None:
        """Show a finished step."""
        status = self.status(report, tokens_per_s)
        if self._is_live:
            self._progress.update(self._task, completed=report.step, status=status)
        elif report.step % self.config.log_every == 0 or report.step == self.config.schedule.last_step:
            self._print(f"step {report.step}/{self.config.schedule.last_step}  {status}")
        if report.skipped:
            figures = f"loss {report.loss:g}, gradient norm {report.grad_norm:g}"
            self.notice(f"step {report.step}: {figures}; the step was skipped")

    def status(self, report: StepReport, tokens_per_s: float) -> str:
        """The figures of one step: loss, held-out loss, rate, share of the matmul peak, time left."""
        parts = [f"loss {report.loss:.3f}"]
        if self._held_out is not None:
            parts.append(f"held out {self._held_out.brief}")
        parts.append(f"{format_count(round(tokens_per_s))} tok/s")
        if self.peak_flops is not None:
            parts.append(f"{peak_share(self.config, tokens_per_s, self.peak_flops):.0%} of peak")
        left_tokens = (self.config.schedule.last_step - report.step) * report.n_tokens
        if tokens_per_s > 0:
            parts.append(f"ETA {format_duration(left_tokens / tokens_per_s)}")
        return "  ".join(parts)

    def held_out(self, step: int, loss: Loss) -> None:
        """Show a held-out evaluation."""
        self._held_out = loss
        if not self._is_live:
            self._print(f"step {step}  held out: {loss}")

    def samples(self, step: int, texts: list[str]) -> None:
        """Show samples of the model's text."""
        for text in texts:
            self._print(f"[step {step}] {text}")

    def notice(self, text: str) -> None:
        """Show one line about something the person should know."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def peak_share(config: TrainConfig, tokens_per_s: float, peak_flops: float) -> float:
    """Model FLOPs per second over the matmul peak; 6 (12 L D^2 + V D) + 6 L D T FLOPs per token."""
    flops = config.model.flops_per_token(FlopsConvention.BENCHMARK, config.data.seq_len)
    return tokens_per_s * flops / peak_flops
