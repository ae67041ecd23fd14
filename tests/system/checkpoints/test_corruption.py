"""Damage at rest: whatever is done to the newest checkpoint is detected, and the one before it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from checkpoint_lab import corruption, planted
from wafergpt.checkpoints import checkpoint as checkpoint_module
from wafergpt.checkpoints import files as files_module
from wafergpt.checkpoints.native import CheckpointStore


def test_every_damage_to_every_file(tmp_path: Path) -> None:
    outcome = corruption.whole_matrix(tmp_path / "run", corruption.real_store)
    assert outcome.violations == []
    assert outcome.n_cases >= 5 * 20


def test_single_bit_flips(tmp_path: Path) -> None:
    outcome = corruption.bit_flips(tmp_path / "run", corruption.real_store, n_flips=2_000, seed=20230406)
    assert outcome.violations == []
    assert outcome.n_cases == 2_000


@pytest.mark.long
def test_all_bits_of_the_first_4_kib_of_each_file(tmp_path: Path) -> None:
    outcome = corruption.bit_flips(tmp_path / "run", corruption.real_store, n_flips=None, seed=1)
    assert outcome.violations == []
    assert outcome.n_cases > 3 * 32_768  # model, optimizer and blob are longer than 4 KiB


@pytest.mark.parametrize(
    "make",
    [
        lambda root: CheckpointStore(root, files=planted.FollowsSymlinks()),
        lambda root: CheckpointStore(root, files=planted.OpensAnything()),
        planted.TakesTheFirst,
    ],
    ids=["follows a symbolic link", "follows a link to the folder", "never falls back"],
)
def test_the_matrix_sees_a_loader_that(make: corruption.Make, tmp_path: Path) -> None:
    assert corruption.whole_matrix(tmp_path / "run", make).violations


def test_the_flips_see_a_digest_over_the_head_of_a_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfTheHead:
        """A writer and a reader that agree on the wrong thing."""

        def __init__(self, data: bytes = b"") -> None:
            self.head = data[:256]

        def update(self, data: Any) -> None:
            self.head += bytes(data)[: 256 - len(self.head)]

        def hexdigest(self) -> str:
            return real(self.head).hexdigest()

    real = hashlib.sha256

    class Planted:
        sha256 = OfTheHead

    monkeypatch.setattr(checkpoint_module, "hashlib", Planted)
    monkeypatch.setattr(files_module, "hashlib", Planted)
    assert corruption.bit_flips(tmp_path / "run", corruption.real_store, n_flips=200, seed=1).violations
