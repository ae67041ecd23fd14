"""Power cuts: every cut point of a save, sampled disk states; and random histories of a run.

Nothing is timed. A violation names seed and case; `checks.explore_crashes` replays it.
"""

from __future__ import annotations

import os

import pytest

from checkpoint_lab import checks

SEED = int(os.environ.get("WAFERGPT_TEST_SEED", "20230406"))


def test_no_power_cut_during_a_save_loses_or_mixes_anything() -> None:
    outcome = checks.explore_crashes(checks.real_store, n_states=20_000, seed=SEED)
    assert outcome.violations == []
    assert outcome.n_cases >= 20_000


def test_random_histories_keep_the_last_acknowledged_checkpoint() -> None:
    outcome = checks.random_histories(checks.real_store, n_histories=600, seed=SEED)
    assert outcome.violations == []
    assert outcome.n_cases >= 3_000


@pytest.mark.long
def test_power_cuts_in_depth() -> None:
    outcome = checks.explore_crashes(checks.real_store, n_states=150_000, seed=SEED + 1)
    assert outcome.violations == []
    assert outcome.n_cases >= 100_000


@pytest.mark.long
def test_random_histories_in_depth() -> None:
    assert checks.random_histories(checks.real_store, n_histories=10_000, seed=SEED + 1).violations == []
