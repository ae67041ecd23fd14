"""What `fit` trains: pre-training here, a task in `finetuning.job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from wafergpt.checkpoints.native import Checkpoint
from wafergpt.training import loop
from wafergpt.training.config import TrainConfig
from wafergpt.training.distributed import World
from wafergpt.training.held_out import Evaluation, Loss, open_held_out
from wafergpt.training.run_folder import RunFolder
from wafergpt.training.step import Trainer
from wafergpt.units import format_count


class Job(Protocol):
    """A run as its standard caller sees it. Every process makes one; the first alone writes files."""

    @property
    def config(self) -> TrainConfig:
        """Everything that decides the run."""
        ...

    @property
    def folder(self) -> RunFolder:
        """Where it lives."""
        ...

    @property
    def held_out(self) -> Evaluation | None:
        """What it is judged by; None: nothing."""
        ...

    @property
    def data_fingerprint(self) -> str:
        """Stands for every token of the training data."""
        ...

    @property
    def loss_unit(self) -> str:
        """What a loss counts, for pictures."""
        ...

    def prepare(
        self, checkpoint: Checkpoint | None, world: World, lines: Sequence[Mapping[str, Any]]
    ) -> Trainer:
        """The trainer at the first step, or at `checkpoint`'s; `lines` are the metrics up to there."""
        ...

    def describe(self) -> str:
        """What is trained on what."""
        ...

    def notices(self) -> list[str]:
        """What a person should know before the first step."""
        ...

    def judged(self, trainer: Trainer, loss: Loss) -> None:
        """Told of every held-out evaluation."""
        ...

    def stop_reason(self) -> str | None:
        """Why the run should end before its last step, if it should."""
        ...

    def finish(self, trainer: Trainer) -> list[str]:
        """Told once, at the end; what a person should know then."""
        ...


class Pretraining:
    """A language model from its first weights, on a prepared folder."""

    loss_unit = "nats/token"

    def __init__(self, config: TrainConfig, path: Path) -> None:
        """Raises DataError for missing, damaged or too short data."""
        self.config = config
        self.folder = RunFolder(path, config)
        self._batches = loop.open_batches(config)
        self.held_out: Evaluation | None = open_held_out(config)
        self.data_fingerprint = self._batches.shards.fingerprint

    def prepare(
        self, checkpoint: Checkpoint | None, world: World, lines: Sequence[Mapping[str, Any]]
    ) -> Trainer:
        """See `loop.prepare`."""
        return loop.prepare(self.config, batches=self._batches, checkpoint=checkpoint, world=world)

    def describe(self) -> str:
        """Parameters and tokens."""
        n_params, n_tokens = self.config.model.n_params, self.config.total_tokens
        return f"{format_count(n_params)} parameters on {format_count(n_tokens)} tokens"

    def notices(self) -> list[str]:
        """A vocabulary that is partly unused; data without a held-out part."""
        found = []
        vocab_size, data_vocab_size = self.config.model.vocab_size, self._batches.shards.vocab_size
        if data_vocab_size < vocab_size:
            unused = f"the model's vocabulary has {vocab_size} entries, the data's {data_vocab_size}"
            found.append(f"{unused}; the rest is never used")
        if self.held_out is None:
            found.append("the data has no held-out part, so nothing is evaluated")
        return found

    def judged(self, trainer: Trainer, loss: Loss) -> None:
        """Nothing follows from it."""

    def stop_reason(self) -> str | None:
        """It goes to its last step."""
        return None

    def finish(self, trainer: Trainer) -> list[str]:
        """The last checkpoint is the model."""
        return []
