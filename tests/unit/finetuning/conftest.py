"""Fixtures of the fine-tuning tests: one thread, a folder in memory, a base of 13,000 numbers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A width of 16 gains nothing from a second thread."""
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
