"""A worker process that answers JSON lines, in any Python environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Failed(Exception):  # noqa: N818 (a peer that cannot be had is a finding)
    """A worker could not do what was asked; the message is the reason."""


class Worker:
    """A process driven over pipes. Use as a context manager; raises Failed."""

    def __init__(self, command: list[str], name: str) -> None:
        self.name, self._command = name, command

    def __enter__(self) -> Worker:
        # Every engine is told its number of threads; no setting of the user's decides the outcome.
        own = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES", "WAFERGPT_ISA", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if k not in own and not k.startswith("MALLOC_")}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        try:
            self.ready = self._answer()
        except Failed:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(found["error"])
        return found
