"""The JSONL log and throughput."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from wafergpt.errors import DataError, StorageError
from wafergpt.training import metrics
from wafergpt.training.metrics import StepLog, Throughput
from wafergpt.training.report import StepReport

REPORT = StepReport(
    step=3, loss=math.nan, lr=1e-3, grad_norm=math.inf, n_tokens=64, total_tokens=192, skipped=True,
    elapsed_s=0.5,
)  # fmt: skip


def write(path: Path, *steps: int) -> None:
    path.write_text("".join(f'{{"step": {step}}}\n' for step in steps))


def steps_in(path: Path) -> list[int]:
    return [line["step"] for line in metrics.read(path)]


@pytest.mark.parametrize(("last_step", "kept"), [(0, []), (1, [1]), (2, [1, 2, 2]), (9, [1, 2, 2, 3])])
def test_lines_after_the_restored_step_are_cut(tmp_path: Path, last_step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 2, 3)
    with StepLog(path, last_step) as log:
        log.append({"step": 10})
    assert steps_in(path) == [*kept, 10]


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    assert steps_in(path) == [1, 2]
    with StepLog(path, 5) as log:
        log.append({"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_an_absent_file_has_no_lines(tmp_path: Path) -> None:
    assert metrics.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("bad", [b"nonsense", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + b"\n")
    with pytest.raises(DataError, match="line 2 is damaged"):
        metrics.read(path)


def test_a_full_disk_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    log = StepLog.__new__(StepLog)
    log.path = Path("metrics.jsonl")
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with log, pytest.raises(StorageError, match=r"cannot write 'metrics.jsonl': No space left on device"):
        log.append({"step": 1})


def test_an_unwritable_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        StepLog(tmp_path / "missing" / "metrics.jsonl", 0)


def test_values_that_json_cannot_hold_become_null() -> None:
    line = metrics.step_line(REPORT, elapsed_s=12.34567, tokens_per_s=128.0)
    assert (line["loss"], line["grad_norm"], line["skipped"]) == (None, None, True)
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_losses_are_logged_in_full_precision() -> None:
    report = StepReport(**{**REPORT.__dict__, "loss": 1 / 3, "grad_norm": math.pi})
    line = json.loads(json.dumps(metrics.step_line(report, 0.0, 0.0)))
    assert (line["loss"], line["grad_norm"]) == (1 / 3, math.pi)


def test_lines_reach_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with StepLog(path, 0) as log:
        log.append({"step": 1})
        assert os.path.getsize(path) == len('{"step": 1}\n')
        log.sync()


def test_throughput_forgets_old_steps() -> None:
    rate = Throughput(window=2)
    assert rate.tokens_per_s == 0.0
    for n_tokens, elapsed_s in ((1, 100.0), (10, 1.0), (30, 1.0)):
        rate.add(n_tokens, elapsed_s)
    assert rate.tokens_per_s == 20.0
