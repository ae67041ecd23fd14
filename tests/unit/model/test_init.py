"""Initial weights obey the table and depend on nothing but config, seed and name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from wafergpt.model import mup
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=128, n_layers=2, n_heads=2, vocab_size=300, max_seq_len=64)

# Standard deviation of a standard normal cut at ±2: 1 - 4 phi(2) / (2 Phi(2) - 1), square root.
CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


@pytest.mark.parametrize("parametrization", list(Parametrization))
def test_every_parameter_obeys_its_rule(parametrization: Parametrization) -> None:
    config = replace(CONFIG, parametrization=parametrization, init_std=None)
    table = mup.rules(config)
    for name, parameter in GPT(config).named_parameters():
        rule, values = table[mup.role_of(name)], parameter.detach()
        if rule.init_std == 0:
            assert (values == rule.init_mean).all(), name
            continue
        assert values.abs().max() <= 2 * rule.init_std * (1 + 1e-6), name
        assert values.abs().max() >= 1.9 * rule.init_std, name  # the cut is at 2 and not elsewhere
        # n draws estimate the deviation to 1/sqrt(2n); 5 of those, n >= 8192
        assert values.std() == pytest.approx(CUT * rule.init_std, rel=5 / math.sqrt(2 * values.numel())), name
        assert abs(values.mean()) < 5 * rule.init_std / math.sqrt(values.numel()), name


def test_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = GPT(CONFIG, seed=5)
    torch.manual_seed(2)
    two = GPT(CONFIG, seed=5)
    other = GPT(CONFIG, seed=6)
    for (name, a), b, c in zip(one.named_parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name


def test_independent_of_the_other_parameters() -> None:
    """A deeper model begins with the same first layers, but for the depth in the standard deviation."""
    deep = GPT(replace(CONFIG, n_layers=3))
    shallow = GPT(CONFIG)
    assert torch.equal(deep.wpe.weight, shallow.wpe.weight)
    assert torch.equal(deep.h[1].mlp.c_fc.weight, shallow.h[1].mlp.c_fc.weight)
    assert not torch.equal(deep.h[0].mlp.c_fc.weight, deep.h[1].mlp.c_fc.weight)


def test_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    GPT(CONFIG)
    assert torch.equal(torch.rand(1), expected)
