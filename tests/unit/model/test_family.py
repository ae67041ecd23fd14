"""The family's names: all there, found under their usual spellings, with a hint otherwise."""

from __future__ import annotations

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import Activation, Parametrization
from wafergpt.model.family import FAMILY, get

NAMES = {
    *("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    *("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B"),
    *("111M-muP", "256M-muP", "590M-muP", "1.3B-muP", "2.7B-muP", "40M-muP"),
}


def test_the_family_is_complete_and_sourced() -> None:
    assert set(FAMILY) == NAMES
    assert all(member.name == name and member.source for name, member in FAMILY.items())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_activation_context_and_parametrisation(name: str) -> None:
    config = FAMILY[name].config
    gpt2 = name.startswith("gpt2")
    assert config.activation is (Activation.GELU_TANH if gpt2 else Activation.GELU)
    assert config.max_seq_len == (1024 if gpt2 else 2048)
    mup = config.parametrization is Parametrization.MUP
    assert mup == name.endswith("muP")
    assert config.init_std == (0.08 if mup else 0.02)


@pytest.mark.parametrize("size", ["111M", "256M", "590M", "1.3B", "2.7B"])
def test_twins_have_one_shape(size: str) -> None:
    assert FAMILY[size].config.parameter_shapes() == FAMILY[f"{size}-muP"].config.parameter_shapes()


@pytest.mark.parametrize(
    "name", ["1.3B-muP", "1.3b-mup", " Cerebras-GPT-1.3B-muP", "cerebras/Cerebras-GPT-1.3b-MUP"]
)
def test_usual_spellings_are_found(name: str) -> None:
    assert get(name) is FAMILY["1.3B-muP"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("1.4B", "did you mean '1.3B'"), ("gpt-2-xl", "did you mean 'gpt2-xl'"), ("??", "known: gpt2,")],
)
def test_unknown_names_get_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        get(name)


def test_the_traps_are_noted() -> None:
    assert "0.0025" in FAMILY["1.3B"].note and "0.0025" in FAMILY["13B"].note
    assert "20 heads" in FAMILY["2.7B"].note
