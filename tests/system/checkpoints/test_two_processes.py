"""Several processes on one folder: one writes, the others are told so or read undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_lab import checks
from checkpoint_lab.process import memory_folder, report


def test_a_second_writer_is_refused_at_every_moment_of_a_save() -> None:
    outcome = checks.interleave_writers(checks.real_store)
    assert outcome.violations == []
    assert outcome.n_cases >= 60


def test_three_blind_writers_leave_no_mixture() -> None:
    with memory_folder() as folder:
        result = report("races", "writers", folder, 15)
    assert result["violations"] == []
    assert result["n_saved"] == 45


def test_a_reader_sees_old_or_new() -> None:
    with memory_folder() as folder:
        result = report("races", "readers", folder, 60)
    assert result["violations"] == []
    assert result["n_loads"] >= 60 and result["last"] == 60


@pytest.mark.long
def test_a_reader_sees_old_or_new_on_a_disk(tmp_path: Path) -> None:
    result = report("races", "readers", tmp_path, 1_000)
    assert result["violations"] == []
    assert result["n_loads"] >= 1_000


def test_the_last_good_checkpoint_is_never_removed() -> None:
    outcome = checks.retention(checks.real_store)
    assert outcome.violations == []
    assert outcome.n_cases == 24
