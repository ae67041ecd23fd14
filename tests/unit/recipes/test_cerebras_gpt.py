"""The published table: spellings, what is refused, and the contradictions it names."""

from __future__ import annotations

import pytest

from wafergpt.errors import ConfigError
from wafergpt.recipes.cerebras_gpt import RECIPES, get


def test_thirteen_runs() -> None:
    assert len(RECIPES) == 13
    assert get("cerebras-gpt-13b") is RECIPES["13B"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2-xl", "not published; derive one for its size with --params 1558M"),
        ("8M", "unknown model '8M'.*--params 8M"),
    ],
)
def test_what_was_not_published_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get(name)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("111M", "10x cosine decayed"),
        ("1.3B", "0.0025"),
        ("2.7B", "20 heads"),
        ("6.7B", "16 systems"),
        ("13B", "38,000"),
        ("13B", "0.0025"),
        ("1.3B-muP", "muP YAML says cosine"),
        ("2.7B-muP", "muP YAML says cosine"),
        ("111M-muP", "lacks the output scale"),
        ("590M-muP", "by mistake"),
    ],
)
def test_the_traps_are_noted(name: str, phrase: str) -> None:
    assert any(phrase in note for note in RECIPES[name].notes)


def test_what_nobody_printed_is_absent() -> None:
    proxy = RECIPES["40M-muP"]
    assert proxy.test_loss is proxy.headline_flops is proxy.card_loss is None
    assert RECIPES["111M-muP"].phases[0].n_systems is None
    assert RECIPES["111M"].end_lr == pytest.approx(6e-5)
