"""`kill -9` of a real writer process; each run proves that the deaths happened before the writer's end."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_lab.process import environment, memory_folder, report
from checkpoint_lab.trainer import expected_fingerprints, fingerprint
from wafergpt.checkpoints.native import CheckpointStore


def test_50_kills_at_random_moments_of_a_run() -> None:
    with memory_folder() as folder:
        result = report("kills", folder, "random", 50, 20230406)
    assert result["violations"] == []
    assert result["n_kills"] == 50, "the deaths did not happen"
    assert result["n_inside_a_save"] >= 1, "no death fell into a save"
    assert result["n_completed_runs"] >= 1, "no run came to its end through its deaths"


def test_a_kill_at_every_file_operation_of_a_save() -> None:
    with memory_folder() as folder:
        result = report("kills", folder, "each")
    assert result["violations"] == []
    assert (
        result["n_kills"] >= 60 and result["n_finished"] == 1
    )  # the first call that is never reached ends the sweep
    assert result["n_completed_runs"] == result["n_kills"] + 1


def test_a_writer_that_works_in_place_is_caught() -> None:
    with memory_folder() as folder:
        violations = report("kills", folder, "each", "ManifestFirst")["violations"]
    assert any("half published" in violation for violation in violations)


@pytest.mark.long
def test_500_kills_at_random_moments_on_a_disk(tmp_path: Path) -> None:
    result = report("kills", tmp_path, "random", 500, 7)
    assert result["violations"] == []
    assert result["n_kills"] == 500 and result["n_inside_a_save"] >= 10


SYSTEM_CALLS = ("openat", "write", "fsync", "rename", "mkdir", "close", "unlink", "rmdir", "flock")


@pytest.mark.long
@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_a_kill_at_each_system_call(call: str, tmp_path: Path) -> None:
    """strace kills the writer at its n-th call of a kind, so that none escapes for not being in our layer."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    prepared, expected = tmp_path / "prepared", expected_fingerprints(4)
    trainer = [sys.executable, "-m", "checkpoint_lab.trainer"]
    subprocess.run([*trainer, str(prepared), "2"], env=environment(), check=True, capture_output=True)
    # A run to step 2 only loads: its calls (imports, mostly) are counted and skipped.
    first, last = (_count(strace, call, prepared, tmp_path, steps) for steps in (2, 3))
    assert last > first, f"a save makes no {call} call"
    n_kills = 0
    for number in range(first + 1, last + 1):
        root = tmp_path / "run"
        shutil.copytree(prepared, root)
        inject = [strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e"]
        inject.append(f"inject={call}:signal=KILL:when={number}")
        done = subprocess.run(
            [*inject, *trainer, str(root), "3"], env=environment(), capture_output=True, text=True
        )
        safe = 3 if "3" in done.stdout.split() else 2
        n_kills += done.returncode != 0
        checkpoint = CheckpointStore(root).load_newest()
        assert checkpoint.step in (safe, 3) and checkpoint.skipped == ()
        assert fingerprint(checkpoint) == expected[checkpoint.step]
        subprocess.run([*trainer, str(root), "4"], env=environment(), check=True, capture_output=True)
        assert fingerprint(CheckpointStore(root).load_newest()) == expected[4]
        shutil.rmtree(root)
    assert n_kills >= last - first - 1, f"only {n_kills} of {last - first} injected deaths happened"


def _count(strace: str, call: str, prepared: Path, tmp_path: Path, steps: int) -> int:
    root, log = tmp_path / "counted", tmp_path / "log"
    shutil.copytree(prepared, root)
    command = [
        strace,
        "-f",
        "-o",
        str(log),
        "-e",
        f"trace={call}",
        sys.executable,
        "-m",
        "checkpoint_lab.trainer",
    ]
    done = subprocess.run(
        [*command, str(root), str(steps)], env=environment(), capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()[-200:]}")
    shutil.rmtree(root)
    return len(re.findall(rf"\b{call}\(", log.read_text()))


def test_the_writer_of_these_tests_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from checkpoint_lab.trainer import run;"
        f"run(Path({str(tmp_path)!r}), 2, print);"
        "import wafergpt.checkpoints.lock; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, capture_output=True)
