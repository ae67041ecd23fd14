"""Which question `wafergpt recipe` was asked."""

from __future__ import annotations

import pytest

from wafergpt.errors import ConfigError
from wafergpt.runs.recipe import derived, published


def test_by_name_and_by_size() -> None:
    assert published("1.3b").title == "Cerebras-GPT 1.3B, as published"
    assert derived(n_params=8e6).title.startswith("Compute-optimal recipe")
    assert derived(flops=1e16, parametrization="standard").config.mup is None


@pytest.mark.parametrize("question", [{}, {"n_params": 8e6, "flops": 1e16}])
def test_one_question_at_a_time(question: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        derived(**question)


def test_an_unknown_parametrisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="'muh' is not one of standard, mup"):
        derived(n_params=8e6, parametrization="muh")
