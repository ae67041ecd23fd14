"""kill -9, SIGTERM and Ctrl-C at random moments of the real trainer; the run ends with the same bits.

Each trainer is forked from this process, which has torch loaded already; its delays come from a printed seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_config

from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.training import metrics
from wafergpt.training.config import TrainConfig
from wafergpt.training.fit import FitOptions, fit
from wafergpt.training.loop import STATE_DOCUMENT
from wafergpt.training.metrics import CLOCK_FIELDS
from wafergpt.training.signals import Interrupted

SEED = 20_261_125
SILENT = FitOptions(console=None, plot=False, measure_peak=False)
FINISHED = 0


def child(config: TrainConfig, folder: Path) -> int:
    """Fork a trainer that starts or resumes `folder`; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99  # anything unforeseen
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until fit takes it: end like any other process
        try:
            fit(config, folder, resume=True, options=SILENT)
            code = FINISHED
        except Interrupted as error:
            code = error.exit_code
    os._exit(code)


def exit_code(pid: int) -> int:
    """As `os.waitstatus_to_exitcode`: negative when a signal ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(folder: Path) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    """Every bit of the last checkpoint's state, and every metrics line without the clock."""
    checkpoint = CheckpointStore(folder / "checkpoints").load_newest()
    tensors = {
        f"{group}/{name}": array.tobytes()
        for group, arrays in checkpoint.tensors.items()
        for name, array in arrays.items()
    }
    lines = [
        {key: value for key, value in line.items() if key not in CLOCK_FIELDS}
        for line in metrics.read(folder / "metrics.jsonl")
    ]
    return tensors, checkpoint.documents[STATE_DOCUMENT], lines


class Killer:
    """Runs and kills the trainer in one folder after another, and checks each finished run."""

    def __init__(self, data: Path, root: Path, number: int) -> None:
        self.config = tiny_config(data, save_every=3, micro_batch_size=2)
        self.root = root
        self.number = number
        self.random = random.Random(SEED)
        self.n_killed = self.n_runs = 0
        started = time.perf_counter()
        assert exit_code(child(self.config, root / "whole")) == FINISHED
        self.longest_s = time.perf_counter() - started
        self.expected = outcome(root / "whole")
        # A polite signal may still find a trainer that is starting up or has just finished.
        self.expected_codes = {-number, 128 + number} - {128 + signal.SIGKILL}

    def run(self, n_kills: int) -> None:
        """Until `n_kills` trainers died of the signal and the last run has finished."""
        while self.n_killed < n_kills or self.n_runs == 0:
            self.n_runs += 1
            folder = self.root / f"run-{self.n_runs}"
            while (code := self.attempt(folder)) != FINISHED:
                assert code in self.expected_codes, f"exit code {code}; seed {SEED}, kill {self.n_killed}"
                self.n_killed += 1
            assert outcome(folder) == self.expected, f"seed {SEED}, run {self.n_runs}"

    def attempt(self, folder: Path) -> int:
        """One trainer, signalled after a random part of a whole run's time."""
        pid = child(self.config, folder)
        time.sleep(self.random.uniform(0.1, 0.9) * self.longest_s)
        os.kill(pid, self.number)  # a trainer that has ended meanwhile is a zombie: no harm
        return exit_code(pid)


def kills(data: Path, root: Path, number: int, n_kills: int) -> None:
    torch.set_num_threads(1)
    Killer(data, root, number).run(n_kills)


def test_kill_9_at_random_moments(data: Path, ram_path: Path) -> None:
    kills(data, ram_path, signal.SIGKILL, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_polite_signals_at_random_moments(data: Path, ram_path: Path, number: int) -> None:
    kills(data, ram_path, number, 5)


@pytest.mark.long
def test_kill_9_at_many_random_moments(data: Path, ram_path: Path) -> None:
    kills(data, ram_path, signal.SIGKILL, 100)
