"""The matmul peak."""

from __future__ import annotations

import math

import pytest
import torch

from wafergpt.training import peak
from wafergpt.training.config import Precision


@pytest.mark.parametrize("precision", list(Precision))
def test_the_matmul_peak_is_a_rate(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_PEAK_SHAPES", ((32, 64, 32),))
    rate = peak.measure_matmul_peak(precision, torch.device("cpu"), duration_s=0.01)
    assert 0 < rate < math.inf
