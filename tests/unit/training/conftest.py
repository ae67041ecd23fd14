"""Fixtures of the training tests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_training import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared folder for all tests; nobody writes to it."""
    return write_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A width of 32 gains nothing from a second thread, and other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A fresh folder in memory where the machine has one: an fsync there costs next to nothing."""
    root = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=root if os.access(root, os.W_OK) else None) as folder:
        yield Path(folder)
