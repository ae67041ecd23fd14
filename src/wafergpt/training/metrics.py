"""Numbers of a run: the JSONL log, exact after resume, and throughput (no torch)."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from wafergpt.errors import DataError, StorageError
from wafergpt.training.report import StepReport

# Fields of a line that depend on the clock; every other field is the same whenever a run is repeated.
CLOCK_FIELDS = ("elapsed_s", "tokens_per_s")


def plain(value: float) -> float | None:
    """`value`, or None for NaN and infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def step_line(report: StepReport, elapsed_s: float, tokens_per_s: float) -> dict[str, Any]:
    """The log line of one step; `elapsed_s` counts training time since the run began."""
    return {
        "step": report.step,
        "loss": plain(report.loss),
        "lr": report.lr,
        "grad_norm": plain(report.grad_norm),
        "total_tokens": report.total_tokens,
        "skipped": report.skipped,
        "elapsed_s": round(elapsed_s, 3),
        "tokens_per_s": round(tokens_per_s, 1),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file, in order; an absent file has none.

    Raises DataError naming a complete line that is not a JSON object with a `step`.
    """
    return [line for line, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, byte offset of its end); a last line without its newline was torn and is not yielded."""
    data = path.read_bytes() if path.exists() else b""
    end = 0
    for number, raw in enumerate(data.split(b"\n")[:-1], start=1):
        end += len(raw) + 1
        try:
            line = json.loads(raw)
            line["step"] + 0
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}, line {number} is damaged: not a metrics line with a step") from None
        yield line, end


class StepLog:
    """Appends JSON lines that carry a `step` to a file, each at once; `sync` makes them durable."""

    def __init__(self, path: Path, last_step: float) -> None:
        """Open `path`, first cutting every line after `last_step` (and a torn one): they will be made again.

        Raises StorageError, DataError for a damaged file.
        """
        self.path = path
        end = 0
        for line, line_end in _lines(path):
            if line["step"] > last_step:
                break
            end = line_end
        try:
            self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)
            self._file.truncate(end)
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. Raises StorageError; a torn line is cut when the run is resumed."""
        data = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Make all lines durable: done before a checkpoint, which must never know more steps than the log."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write '{self.path}': {error.strerror}; the checkpoints are intact")


class Throughput:
    """Tokens per second over the last `window` steps."""

    def __init__(self, window: int = 20) -> None:
        self._steps: collections.deque[tuple[int, float]] = collections.deque(maxlen=window)

    def add(self, n_tokens: int, elapsed_s: float) -> None:
        """Count one step."""
        self._steps.append((n_tokens, elapsed_s))

    @property
    def tokens_per_s(self) -> float:
        """0 before the first step."""
        elapsed_s = sum(step[1] for step in self._steps)
        return sum(step[0] for step in self._steps) / elapsed_s if elapsed_s > 0 else 0.0
