"""One writer per folder, and no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.checkpoints.lock import LOCK_NAME, RunLock
from wafergpt.errors import RunLockedError, StorageError

HOLD = """
import os, sys, time
from pathlib import Path
from wafergpt.checkpoints.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if "worker" in sys.argv:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(1)
            os.write(writer, b"up")
            time.sleep(600)
        os.read(reader, 2)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that holds the lock until its standard input closes; it has the lock when this returns."""
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert process.stdout is not None and int(process.stdout.readline()) == process.pid
    return process


def test_a_second_process_is_told_who_has_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(RunLockedError, match=rf"in use by process {process.pid};"), RunLock(tmp_path):
        pass
    process.communicate("")
    assert process.returncode == 0
    with RunLock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK_NAME).read_text().strip() == str(process.pid)  # stale, and no obstacle
    with RunLock(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text().strip() == str(os.getpid())
    assert (tmp_path / LOCK_NAME).read_text() == ""


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_it(tmp_path: Path) -> None:
    process = holder(tmp_path, "worker")
    try:
        with pytest.raises(RunLockedError), RunLock(tmp_path):
            pass  # the child closed its copy, the parent still holds
        process.kill()
        process.wait()
        with RunLock(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: the parent is gone, the worker is left
        process.communicate()


def test_the_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with lock:
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"), lock:
            pass
    with lock:
        pass


def test_locks_of_other_names_and_folders_are_independent(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with RunLock(tmp_path), RunLock(tmp_path / "other"), RunLock(tmp_path, name=".save.lock"):
        pass


def test_what_cannot_be_locked_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"), RunLock(tmp_path / "missing"):
        pass
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot lock"), RunLock(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match="No locks available"), RunLock(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_a_holder_without_a_number_is_still_a_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK_NAME).write_text("")  # what a full disk leaves
        with pytest.raises(RunLockedError, match="another process"), RunLock(tmp_path):
            pass
