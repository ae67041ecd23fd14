"""Real deaths: a warmed parent forks the tiny trainer and kills it with SIGKILL, again and again.

`python -m checkpoint_lab.kills FOLDER random N SEED | each [PLANTED]` prints one JSON line with counts and
violations; PLANTED names a class of `planted`. It runs in a process of its own because it forks, which a test
runner with threads had better not do.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_lab import planted
from checkpoint_lab.trainer import expected_fingerprints, fingerprint, run
from wafergpt.checkpoints.files import OSFiles
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.errors import CheckpointError

N_STEPS = 40
EXPECTED = expected_fingerprints(N_STEPS)
CALLS = (
    "mkdir",
    "open_new",
    "write",
    "fsync",
    "close",
    "rename",
    "unlink",
    "rmdir",
    "open_read",
    "read_into",
)


@dataclass
class Report:
    n_kills: int = 0  # children that died of SIGKILL before their end
    n_inside_a_save: int = 0  # of those, how many left a temporary or condemned folder
    n_finished: int = 0  # children that came to their end first: not counted as kills
    n_completed_runs: int = 0  # runs of N_STEPS that ended with the right bits after their kills
    violations: list[str] = field(default_factory=list)


class KillsItself(planted.Layer):
    """Sends SIGKILL to its own process instead of call number `at`."""

    def __init__(self, below: Any, at: int) -> None:
        super().__init__(below)
        self.at = at
        self.n_calls = 0

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        if name not in CALLS:
            return call

        def counted(*arguments: Any) -> Any:
            if self.n_calls == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.n_calls += 1
            return call(*arguments)

        return counted


def fork_trainer(
    root: Path, n_steps: int, files: Any = None, make_store: type[CheckpointStore] = CheckpointStore
) -> tuple[int, int]:
    """(process id, pipe on which the child sends one byte for every step that is safe)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            run(root, n_steps, lambda step: os.write(writer, bytes([step])), files, make_store)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    return child, reader


def drain(reader: int) -> int:
    """The last step the child called safe, 0 if none."""
    last = 0
    while data := os.read(reader, 4096):
        last = data[-1]
    os.close(reader)
    return last


def examine(report: Report, root: Path, safe: int, case: str) -> int:
    """After a death: nothing lost, at most one step ahead of what was called safe, bit for bit."""
    store = CheckpointStore(root)
    left = (
        [name for name in os.listdir(root) if name.startswith((".tmp-", ".trash-"))] if root.is_dir() else []
    )
    report.n_inside_a_save += bool(left)
    try:
        checkpoint = store.load_newest()
    except CheckpointError as error:
        if safe:
            report.violations.append(f"{case}: lost everything: {error}")
        return 0
    if checkpoint.skipped:
        report.violations.append(f"{case}: half published: {checkpoint.skipped}")
    if checkpoint.step not in (safe, safe + 1):
        report.violations.append(f"{case}: step {checkpoint.step} found, {safe} was safe")
    if fingerprint(checkpoint) != EXPECTED[checkpoint.step]:
        report.violations.append(f"{case}: step {checkpoint.step} holds other bits")
    return checkpoint.step


def kill_at_random(folder: Path, n_kills: int, seed: int) -> Report:
    report, rng = Report(), random.Random(seed)
    root, safe = folder / "run" / "checkpoints", 0
    started = time.monotonic()
    child, reader = fork_trainer(folder / "rate" / "checkpoints", N_STEPS)
    drain(reader)
    os.waitpid(child, 0)
    whole_run_s = time.monotonic() - started  # kills fall anywhere in a run of this length
    while report.n_kills < n_kills and report.n_finished < 20 * n_kills:
        child, reader = fork_trainer(root, N_STEPS)
        time.sleep(rng.uniform(0, 0.5 * whole_run_s))
        os.kill(child, signal.SIGKILL)
        safe = drain(reader) or safe
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        report.n_kills += killed
        report.n_finished += not killed
        safe = examine(report, root, safe, f"kill {report.n_kills}, seed {seed}")
        if not killed and os.WEXITSTATUS(status) != 0:
            report.violations.append(f"kill {report.n_kills}, seed {seed}: the trainer failed by itself")
        if safe == N_STEPS:
            report.n_completed_runs += 1
            shutil.rmtree(root)
            safe = 0
    return report


def kill_at_each_call(folder: Path, store: str = "") -> Report:
    """Two steps done, then a third whose save dies at call 0, 1, 2 ... until one gets through."""
    report, make_store = Report(), getattr(planted, store) if store else CheckpointStore
    prepared, root = folder / "prepared" / "checkpoints", folder / "run" / "checkpoints"
    run(prepared, 2, lambda step: None)
    at, finished = 0, False
    while not finished:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)
        child, reader = fork_trainer(root, 3, KillsItself(OSFiles(), at), make_store)
        safe = drain(reader) or 2
        _, status = os.waitpid(child, 0)
        finished = os.WIFEXITED(status)
        report.n_kills += not finished
        report.n_finished += finished
        found = examine(report, root, safe, f"kill at call {at}")
        child, reader = fork_trainer(root, 5)
        drain(reader)
        os.waitpid(child, 0)
        if examine(report, root, 5, f"kill at call {at}, then resumed from {found}") == 5:
            report.n_completed_runs += 1
        at += 1
    return report


def main() -> None:
    folder, mode, *rest = sys.argv[1:]
    if mode == "random":
        report = kill_at_random(Path(folder), n_kills=int(rest[0]), seed=int(rest[1]))
    else:
        report = kill_at_each_call(Path(folder), *rest)
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
