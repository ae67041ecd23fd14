"""The folder of one run: who may write to it, what lies where, and how a run is found again.

RUN/config.yaml  checkpoints/  metrics.jsonl  events.jsonl  samples.jsonl  loss.png
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt import config as config_files
from wafergpt.checkpoints.files import remove_temporaries, write_atomic
from wafergpt.checkpoints.lock import LOCK_NAME, RunLock
from wafergpt.checkpoints.native import CHECKPOINTS_NAME, Checkpoint, CheckpointStore
from wafergpt.errors import CheckpointError, ConfigError, DataError, StorageError
from wafergpt.training import environment, resume
from wafergpt.training import state as training_state
from wafergpt.training.config import TrainConfig
from wafergpt.training.environment import Fingerprint
from wafergpt.training.loop import CONFIG_DOCUMENT, STATE_DOCUMENT
from wafergpt.training.metrics import StepLog
from wafergpt.training.state import TrainState

CONFIG_NAME = "config.yaml"
ENVIRONMENT_DOCUMENT = "environment.json"
DATA_DOCUMENT = "data.json"
TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a run came from, beside its config: stored with each checkpoint, compared on resume."""

    environment: Fingerprint
    data_fingerprint: str  # ShardSet.fingerprint of the training data


@dataclass(frozen=True, kw_only=True)
class ResumeReport:
    """What differs from the run that saved; `bit_exact` says whether the same bits can still be promised."""

    notices: tuple[str, ...]
    bit_exact: bool


class RunFolder:
    """Paths and rules of one run's folder; nothing is touched before `claim`."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = Path(path)
        self.config = config
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.samples_path = self.path / "samples.jsonl"
        self.curve_path = self.path / "loss.png"
        self.store = CheckpointStore(self.path / CHECKPOINTS_NAME, keep=config.keep)

    @contextlib.contextmanager
    def claim(self, *, resume: bool) -> Iterator[None]:
        """Make the folder, hold its lock, and write the config.

        Raises ConfigError when the folder is used and `resume` is false, or holds something that is no run;
        RunLockedError when another process trains there; StorageError.
        """
        names = self._names()
        is_run = bool(names & {CONFIG_NAME, CHECKPOINTS_NAME})
        if names and not is_run:
            raise ConfigError(f"'{self.path}' is not empty and holds no run; choose another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder '{self.path}': {error.strerror}") from error
        with RunLock(self.path):
            if self._names() and not resume:
                raise ConfigError(
                    f"'{self.path}' holds a run already: add --resume to go on, or choose another --out"
                )
            remove_temporaries(self.path)
            yield

    def _names(self) -> set[str]:
        try:
            return {entry.name for entry in self.path.iterdir()} - {LOCK_NAME}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise ConfigError(f"'{self.path}' is a file, not a folder; choose another --out") from None

    def write_config(self) -> None:
        """Store the resolved config where a person looks first. Raises StorageError."""
        write_atomic(self.path / CONFIG_NAME, config_files.dump(self.config).encode())

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest verified checkpoint; None when none was ever published.

        Raises CheckpointError when there are some and all are damaged: nothing starts over silently.
        """
        return self.store.load_newest() if self.store.paths() else None

    def save(self, state: TrainState, provenance: Provenance) -> Path:
        """Publish a checkpoint of `state`. Raises StorageError, NonFiniteError, DataError."""
        documents: dict[str, Any] = {
            CONFIG_DOCUMENT: config_files.to_dict(self.config),
            STATE_DOCUMENT: training_state.to_document(state),
            ENVIRONMENT_DOCUMENT: provenance.environment,
            DATA_DOCUMENT: {"fingerprint": provenance.data_fingerprint},
        }
        return self.store.save(
            state.step, training_state.to_arrays(state), documents, {TOKENIZER_NAME: self.tokenizer()}
        )

    def tokenizer(self) -> bytes:
        """The tokenizer.json that every checkpoint carries. Raises DataError."""
        try:
            return (self.config.data.path / TOKENIZER_NAME).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer of '{self.config.data.path}': {error.strerror}"
            ) from error

    def compare(self, checkpoint: Checkpoint, provenance: Provenance) -> ResumeReport:
        """What changed since `checkpoint` was saved.

        Raises ConfigError for a changed config key that would make it another run, DataError for other data,
        CheckpointError when the checkpoint does not say what it was trained with.
        """
        documents = checkpoint.documents
        for name in (CONFIG_DOCUMENT, ENVIRONMENT_DOCUMENT, DATA_DOCUMENT):
            if not isinstance(documents.get(name), dict):
                raise CheckpointError(f"'{checkpoint.path}' has no {name}, so this run cannot be continued")
        changes = resume.compare(documents[CONFIG_DOCUMENT], self.config)
        if documents[DATA_DOCUMENT].get("fingerprint") != provenance.data_fingerprint:
            raise DataError(
                f"'{self.config.data.path}' is not the data this run was trained on; set data.path to it"
            )
        mismatches = environment.mismatches(documents[ENVIRONMENT_DOCUMENT], provenance.environment)
        notices = [f"passed over checkpoint {item.path.name}: {item.reason}" for item in checkpoint.skipped]
        notices += [f"config changed: {change}" for change in (*changes.free, *changes.inexact)]
        notices += [f"environment changed: {mismatch}" for mismatch in mismatches]
        bit_exact = not (mismatches or changes.inexact)
        if not bit_exact:
            notices.append("from here on the same steps may round differently (bit_exact: false)")
        return ResumeReport(notices=tuple(notices), bit_exact=bit_exact)

    def open_events(self) -> StepLog:
        """The log of what happened to the run (started, resumed, interrupted, ...); never cut."""
        return StepLog(self.events_path, last_step=math.inf)
