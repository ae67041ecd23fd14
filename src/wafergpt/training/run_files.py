"""The files that the first process of a run writes while it trains: metrics, events, samples, TensorBoard."""

from __future__ import annotations

import contextlib
from typing import Any

from wafergpt.checkpoints.native import Checkpoint
from wafergpt.training import metrics
from wafergpt.training.metrics import StepLog
from wafergpt.training.run_folder import RunFolder
from wafergpt.training.tensorboard import TensorBoard


class RunFiles:
    """See the module. What a resumed run does again is cut first."""

    def __init__(self, folder: RunFolder, checkpoint: Checkpoint | None, tensorboard: bool) -> None:
        step = checkpoint.step if checkpoint else 0
        self.folder = folder
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
            if tensorboard
            else None
        )

    def __enter__(self) -> RunFiles:
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
