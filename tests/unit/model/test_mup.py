"""The parametrisation tables: every parameter has one rule, and the rules scale as stated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, MuPConfig, Parametrization
from wafergpt.model.mup import Role, multipliers, role_of, rules, width_ratios

STANDARD = GPTConfig(d_model=512, n_layers=8, n_heads=4, d_ffn=1024)
MUP = replace(STANDARD, parametrization=Parametrization.MUP, init_std=None)


def test_every_parameter_has_a_role() -> None:
    roles = {name: role_of(name) for name in STANDARD.parameter_shapes()}
    assert set(roles.values()) == set(Role)
    assert roles["wte.weight"] is roles["wpe.weight"] is Role.EMBEDDING
    assert roles["h.3.attn.c_attn.weight"] is roles["h.7.mlp.c_fc.weight"] is Role.HIDDEN_IN
    assert roles["h.0.attn.c_proj.weight"] is Role.ATTENTION_OUT
    assert roles["h.0.mlp.c_proj.weight"] is Role.FFN_OUT
    assert roles["ln_f.weight"] is roles["h.1.ln_2.weight"] is Role.NORM
    assert all(role is Role.BIAS for name, role in roles.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    "name", ["", "wte", "wte.bias", "lm_head.weight", "h.0.wte.weight", "h.x.ln_1.weight", "ln_1.weight"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a GPT parameter"):
        role_of(name)


@pytest.mark.parametrize("config", [STANDARD, MUP])
def test_biases_and_layer_norms_are_constant_and_never_decayed(config: GPTConfig) -> None:
    table = rules(config)
    assert set(table) == set(Role)
    decayed = {role for role, rule in table.items() if rule.weight_decay}
    assert decayed == {Role.EMBEDDING, Role.HIDDEN_IN, Role.ATTENTION_OUT, Role.FFN_OUT}
    assert (table[Role.NORM].init_mean, table[Role.NORM].init_std) == (1.0, 0.0)
    assert (table[Role.BIAS].init_mean, table[Role.BIAS].init_std) == (0.0, 0.0)


def test_standard_scales_no_learning_rate() -> None:
    assert {rule.lr_scale for rule in rules(STANDARD).values()} == {1.0}
    forward = multipliers(STANDARD)
    assert (forward.embedding, forward.logits) == (1.0, 1.0)
    assert forward.attention_scale == 1 / math.sqrt(128)


def test_mup_scales_ffn_out_with_the_ffn_ratio() -> None:
    """m = 2 and m_ffn = 1 here, so the two output projections differ."""
    ratios, table, forward = width_ratios(MUP), rules(MUP), multipliers(MUP)
    assert (ratios.d_model, ratios.d_ffn) == (2.0, 1.0)
    assert table[Role.ATTENTION_OUT].init_std == 0.08 / math.sqrt(2 * 8 * 2)
    assert table[Role.FFN_OUT].init_std == 0.08 / math.sqrt(2 * 8)
    assert (table[Role.HIDDEN_IN].lr_scale, table[Role.FFN_OUT].lr_scale) == (0.5, 1.0)
    assert (forward.embedding, forward.logits, forward.attention_scale) == (10.0, 0.5, 1 / 128)


def test_mup_at_its_base_width_is_unscaled() -> None:
    base = GPTConfig(d_model=256, n_layers=2, n_heads=4, parametrization=Parametrization.MUP)
    assert {rule.lr_scale for rule in rules(base).values()} == {1.0}
    assert multipliers(base).logits == 1.0


def test_own_multipliers_are_used() -> None:
    own = replace(MUP, mup=MuPConfig(base_d_model=128, embedding_multiplier=3.0, output_multiplier=2.0))
    assert (multipliers(own).embedding, multipliers(own).logits) == (3.0, 2.0 / 4)
