"""Storage that fails: every error at every call, real limits, a real full file system, flipped bits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from checkpoint_lab import checks
from checkpoint_lab.process import report


def test_every_error_at_every_call_of_a_save() -> None:
    outcome = checks.sweep_errors(checks.real_store, seed=1)
    assert outcome.violations == []
    assert outcome.n_cases >= 400


def test_a_first_save_survives_every_error_too() -> None:
    assert checks.sweep_errors(checks.real_store, seed=2, scenario=checks.SCENARIOS[0]).violations == []


def test_a_bit_that_flips_between_memory_and_file_is_noticed_at_once() -> None:
    outcome = checks.flipped_writes(checks.real_store)
    assert outcome.violations == []
    assert outcome.n_cases >= 5


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    result = report("limits", "file-size", tmp_path)
    assert result["violations"] == []
    assert result["n_refused"] == 10  # every 4 KiB below the 40 KB of the largest file
    assert result["messages"] == ["File too large; earlier checkpoints are intact"]


def test_a_real_full_file_system(tmp_path: Path) -> None:
    small = ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=600k none {tmp_path}"
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    probe = subprocess.run([*small, "sh", "-c", mount], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {probe.stderr.strip()}")
    prefix = (*small, "sh", "-c", f'{mount} && exec "$0" "$@"')
    result = report("limits", "full", tmp_path, prefix=prefix)
    assert result["violations"] == []
    assert result["n_refused"] >= 3
    assert result["messages"] == ["No space left on device; earlier checkpoints are intact"]
