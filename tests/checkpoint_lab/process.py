"""Runs a program of the lab in a process of its own and returns the JSON line it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


def report(module: str, *arguments: object, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """`python -m checkpoint_lab.MODULE ARGUMENTS`, optionally run through the command `prefix`."""
    command = [*prefix, sys.executable, "-m", f"checkpoint_lab.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where the system has one: SIGKILL does not care, and a busy disk costs no time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name).resolve()
