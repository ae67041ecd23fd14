"""The scaling law at single points and its refusals; its inverse is in tests/property."""

from __future__ import annotations

import math

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import Parametrization
from wafergpt.recipes.scaling_law import MUP_LAW, STANDARD_LAW, Status, law


def test_constants_and_labels() -> None:
    assert STANDARD_LAW.loss(5.984e22) == 1 + 0.5066
    assert law(Parametrization.STANDARD) is STANDARD_LAW and law(Parametrization.MUP) is MUP_LAW
    assert (STANDARD_LAW.status, MUP_LAW.status) == (Status.PUBLISHED, Status.DERIVED)


@pytest.mark.parametrize("flops", [0, -1.0, math.nan, math.inf])
def test_impossible_budgets_are_refused(flops: float) -> None:
    with pytest.raises(ConfigError, match="flops"):
        STANDARD_LAW.loss(flops)


@pytest.mark.parametrize("loss", [0.5066, 0.1, math.nan, math.inf])
def test_unreachable_losses_are_refused(loss: float) -> None:
    with pytest.raises(ConfigError, match="loss"):
        STANDARD_LAW.flops(loss)


def test_extrapolation_is_known() -> None:
    assert not STANDARD_LAW.extrapolates(1e20)
    assert STANDARD_LAW.extrapolates(1e16) and MUP_LAW.extrapolates(1e22)
