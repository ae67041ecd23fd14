"""Properties of the recipes over the whole range of sizes and budgets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.model.config import GPTConfig, MuPConfig, Parametrization
from wafergpt.model.mup import Role, rules
from wafergpt.recipes.budget import from_flops
from wafergpt.recipes.compute_optimal import batch_tokens, from_params
from wafergpt.recipes.scaling_law import MUP_LAW, STANDARD_LAW, ScalingLaw
from wafergpt.runs.pretrain import pretrain

KINDS = st.sampled_from(list(Parametrization))


def log_floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log10(low), math.log10(high)).map(lambda exponent: 10.0**exponent)


@settings(max_examples=60, deadline=None)
@given(n_params=log_floats(2.6e5, 3.9e11), kind=KINDS)
def test_every_size_has_a_recipe_that_can_run(n_params: float, kind: Parametrization) -> None:
    recipe = from_params(n_params, parametrization=kind)
    assert abs(math.log(recipe.model.n_params / n_params)) <= 0.25
    assert 0 < recipe.warmup_steps < recipe.total_steps
    # Rounding down to whole batches loses less than one of at least 300 steps.
    assert 20 * (1 - 1 / 300) <= recipe.tokens_per_param <= 20
    assert recipe.expected_loss is not None and recipe.expected_loss < 6
    pretrain(recipe, Path("data"))  # its own checks accept the figures


@settings(max_examples=20, deadline=None)
@given(flops=log_floats(2e13, 1.9e25), kind=KINDS)
def test_no_budget_is_exceeded_and_most_of_it_is_used(flops: float, kind: Parametrization) -> None:
    """From one shape to the next FLOPs grow by at most 1.44 and dip to 0.86: at least 0.86 / 1.44 is used."""
    recipe = from_flops(flops, parametrization=kind)
    assert 0.59 * flops <= recipe.flops <= flops


@given(tokens=st.tuples(log_floats(1e6, 1e13), log_floats(1e6, 1e13)))
def test_the_batch_grows_with_the_run(tokens: tuple[float, float]) -> None:
    assert batch_tokens(min(tokens)) <= batch_tokens(max(tokens)) * (1 + 1e-12)


@given(flops=log_floats(1e12, 1e26), law=st.sampled_from([STANDARD_LAW, MUP_LAW]))
def test_the_scaling_law_inverts(flops: float, law: ScalingLaw) -> None:
    """Relative error: float rounding of the loss over (loss - irreducible), times 1/exponent: below 1e-13."""
    assert law.flops(law.loss(flops)) == pytest.approx(flops, rel=1e-12)
    assert law.loss(2 * flops) < law.loss(flops)


@given(base=st.integers(32, 512), factor=st.integers(1, 32), n_layers=st.integers(1, 64))
def test_mup_update_over_init_keeps_its_order_with_width(base: int, factor: int, n_layers: int) -> None:
    """LR * sqrt(width) / init std of hidden matrices is the same at every width: both shrink together."""

    def ratio(d_model: int, role: Role) -> float:
        mup = MuPConfig(base_d_model=base, base_d_ffn=4 * base)
        config = GPTConfig(
            d_model=d_model, n_layers=n_layers, n_heads=1, mup=mup, parametrization=Parametrization.MUP
        )
        rule = rules(config)[role]
        return rule.lr_scale * math.sqrt(d_model) / rule.init_std

    for role in (Role.HIDDEN_IN, Role.ATTENTION_OUT, Role.FFN_OUT):
        assert ratio(base * factor, role) == pytest.approx(ratio(base, role), rel=1e-12)
