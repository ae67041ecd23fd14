"""The tiny run of the unit tests, for tests that kill it, signal it and split it over processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "training"))

from tiny_training import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared folder for all tests; nobody writes to it."""
    return write_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A fresh folder in memory where the machine has one: an fsync there costs next to nothing."""
    root = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=root if os.access(root, os.W_OK) else None) as folder:
        yield Path(folder)
