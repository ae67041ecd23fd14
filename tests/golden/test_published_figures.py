"""The published figures, written out here as printed, against what our formulas and tables give.

Sources: the Model Zoo's Cerebras_GPT YAMLs and README, arXiv 2304.03208, the Hugging Face files. Where a
figure is printed to n digits the comparison rounds to n digits; counts and steps are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, pstdev

import pytest

from wafergpt.model.config import FlopsConvention, GPTConfig
from wafergpt.model.family import FAMILY
from wafergpt.model.mup import Role, multipliers, rules, width_ratios
from wafergpt.recipes.cerebras_gpt import RECIPES
from wafergpt.recipes.compute_optimal import batch_sequences, total_steps, warmup_steps
from wafergpt.recipes.scaling_law import MUP_LAW, STANDARD_LAW

SIZES = ("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")
MUP_SIZES = SIZES[:5]

# name: (parameters, without embeddings)
PARAMETERS = {
    "111M": (111_050_496, 70_880_256),
    "256M": (255_977_024, 199_069_184),
    "590M": (590_310_912, 509_970_432),
    "1.3B": (1_315_723_264, 1_208_602_624),
    "2.7B": (2_651_553_280, 2_517_652_480),
    "6.7B": (6_658_404_352, 6_444_163_072),
    "13B": (12_853_386_240, 12_585_584_640),
}
GPT2_PARAMETERS = {  # of the released checkpoints, head tied
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
HEADLINE_FLOPS = ("2.6e+18", "1.3e+19", "6.1e+19", "2.8e+20", "1.1e+21", "6.3e+21", "2.3e+22")
OLDER_FLOPS = ("2.5e+18", "1.1e+19", "5.3e+19", "2.5e+20", "9.8e+20", "5.9e+21", "2.1e+22")

# size: (layers, d_model, heads, d_head, d_ffn)
SHAPES = {
    "111M": (10, 768, 12, 64, 3072),
    "256M": (14, 1088, 17, 64, 4352),
    "590M": (18, 1536, 12, 128, 6144),
    "1.3B": (24, 2048, 16, 128, 8192),
    "2.7B": (32, 2560, 32, 80, 10240),
    "6.7B": (32, 4096, 32, 128, 16384),
    "13B": (40, 5120, 40, 128, 20480),
}

# size: (batch, warm-up steps, decay steps, last step), one entry per phase
SCHEDULES = {
    "111M": [(120, 1525, 7512, 9037)],
    "256M": [(264, 693, 8775, 9468)],
    "590M": [(264, 693, 21143, 21836)],
    "1.3B": [(528, 346, 23988, 24334)],
    "2.7B": [(528, 346, 48695, 49041)],
    "6.7B": [(1040, 176, 62346, 62522)],
    "13B": [(720, 254, 174081, 57000), (1080, 169, 116054, 116223)],
    "40M-muP": [(256, 152, 1373, 1525)],
}

# Output projections' std in the YAMLs; 1.3B and 13B by the paper's formula (their YAMLs hold 0.0025).
OUTPUT_STD = {
    "111M": 0.004472135955,
    "256M": 0.003779644730,
    "590M": 0.003333333333,
    "1.3B": 0.002886751,
    "2.7B": 0.0025,
    "6.7B": 0.0025,
    "13B": 0.002236068,
}

# size: m, hidden LR, std hidden, std out-projections, logit scale, d_head of the attention scale
MUP_TABLE = {
    "111M": (3, 2.0e-3, 0.0461880, 0.0103280, 1 / 3, 64),
    "256M": (4.25, 1.41176e-3, 0.0388057, 0.0073336, 0.2352941, 64),
    "590M": (6, 1.0e-3, 0.0326599, 0.0054433, 1 / 6, 128),
    "1.3B": (8, 7.5e-4, 0.0282843, 0.0040825, 0.125, 128),
    "2.7B": (10, 6.0e-4, 0.0252982, 0.0031623, 0.1, 80),
    "40M": (1, 6.0e-3, 0.08, 0.0115470, 1.0, 64),
}


@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_parameter_counts_are_exact(size: str) -> None:
    config = FAMILY[size].config
    assert (config.n_layers, config.d_model, config.n_heads, config.d_head, config.d_ffn) == SHAPES[size]
    assert (config.n_params, config.n_params_non_embedding) == PARAMETERS[size]
    assert (config.vocab_size, config.max_seq_len, config.layer_norm_eps) == (50257, 2048, 1e-5)


@pytest.mark.parametrize("name", GPT2_PARAMETERS)
def test_gpt2_parameter_counts_are_exact(name: str) -> None:
    assert FAMILY[name].config.n_params == GPT2_PARAMETERS[name]


def test_the_proxy_has_32_million_parameters_despite_its_name() -> None:
    assert FAMILY["40M-muP"].config.n_params == 32_344_832


def flops_mismatches(printed: tuple[str, ...], flops_per_token: Callable[[GPTConfig], float]) -> list[str]:
    """The sizes whose FLOPs, to two digits, are not the printed ones."""
    recipes = [RECIPES[size] for size in SIZES]
    got = [f"{recipe.n_tokens * flops_per_token(recipe.config):.1e}" for recipe in recipes]
    return [size for size, ours, theirs in zip(SIZES, got, printed, strict=True) if ours != theirs]


def test_all_seven_flops_headlines_are_reproduced_to_the_printed_digits() -> None:
    assert flops_mismatches(HEADLINE_FLOPS, lambda c: c.flops_per_token(FlopsConvention.CEREBRAS)) == []


def test_the_older_flops_table_is_reproduced_for_six_of_seven() -> None:
    """111M is printed as 2.5e18 there, and no convention we know gives that."""
    mismatches = flops_mismatches(OLDER_FLOPS, lambda c: c.flops_per_token(FlopsConvention.CEREBRAS_TABLE))
    assert mismatches == ["111M"]


def test_the_flops_comparison_can_fail() -> None:
    """Planted bug: attention counted once, 6 N."""
    for convention in (FlopsConvention.CEREBRAS_TABLE, FlopsConvention.SIX_N):
        assert len(flops_mismatches(HEADLINE_FLOPS, lambda c, k=convention: c.flops_per_token(k))) >= 6


@pytest.mark.parametrize("size", SCHEDULES)
def test_the_published_schedules_follow_from_the_rules(size: str) -> None:
    """375M tokens of warm-up, 20 tokens per parameter, both rounded down; the proxy: 10 % of 800M tokens."""
    recipe = RECIPES[size]
    table = [(p.batch_sequences, p.warmup_steps, p.decay_steps, p.last_step) for p in recipe.phases]
    assert table == SCHEDULES[size]
    n_tokens = 800_000_000 if size == "40M-muP" else 20 * recipe.config.n_params
    for phase in recipe.phases:
        assert warmup_steps(n_tokens, phase.batch_tokens) == phase.warmup_steps
        assert total_steps(n_tokens, phase.batch_tokens) == phase.warmup_steps + phase.decay_steps


def test_13b_was_trained_in_two_phases_on_one_curve() -> None:
    first, second = RECIPES["13B"].phases
    assert second.first_step == first.last_step * 720 // 1080 == 38_000
    assert (first.n_tokens, second.n_tokens) == (84_049_920_000, 173_016_760_320)


@pytest.mark.parametrize("size", SIZES)
def test_every_run_saw_twenty_tokens_per_parameter(size: str) -> None:
    assert f"{RECIPES[size].tokens_per_param:.2f}" == "20.00"
    assert batch_sequences(20 * RECIPES[size].config.n_params, 2048) == SCHEDULES[size][-1][0]


def test_learning_rates_decay_and_epsilon_are_as_printed() -> None:
    peak_lrs = (6e-4, 6e-4, 2e-4, 2e-4, 2e-4, 1.2e-4, 1.2e-4)
    decays = ("linear", "linear", "linear", "cosine", "cosine", "linear", "cosine")
    eps = (1e-8, 1e-8, 1e-8, 1e-8, 1e-8, 1e-9, 1e-9)
    recipes = [RECIPES[size] for size in SIZES]
    assert tuple(r.peak_lr for r in recipes) == peak_lrs
    assert tuple(r.decay.value for r in recipes) == decays
    assert tuple(r.adam_eps for r in recipes) == eps
    for size in MUP_SIZES:
        twin = RECIPES[f"{size}-muP"]
        assert (twin.peak_lr, twin.decay.value, twin.adam_eps) == (6e-3, "linear", 1e-8)
        assert [p.batch_sequences for p in twin.phases] == [SCHEDULES[size][0][0]]


@pytest.mark.parametrize("size", SIZES)
def test_standard_initialiser_literals(size: str) -> None:
    table = rules(FAMILY[size].config)
    printed_digits = 5e-10 if size in ("111M", "256M", "590M") else 5e-10 + 5e-7 * OUTPUT_STD[size]
    assert table[Role.EMBEDDING].init_std == table[Role.HIDDEN_IN].init_std == 0.02
    for role in (Role.ATTENTION_OUT, Role.FFN_OUT):
        assert table[role].init_std == pytest.approx(OUTPUT_STD[size], abs=printed_digits, rel=0)


@pytest.mark.parametrize("size", MUP_TABLE)
def test_mup_table_per_size(size: str) -> None:
    m, hidden_lr, std_hidden, std_out, logit_scale, d_head = MUP_TABLE[size]
    config = FAMILY[f"{size}-muP"].config
    table, forward, ratios = rules(config), multipliers(config), width_ratios(config)
    assert ratios.d_model == ratios.d_ffn == m
    assert 6e-3 * table[Role.HIDDEN_IN].lr_scale == pytest.approx(hidden_lr, rel=5e-6)  # six digits printed
    assert table[Role.ATTENTION_OUT].lr_scale == table[Role.FFN_OUT].lr_scale == 1 / m
    assert table[Role.EMBEDDING].lr_scale == table[Role.NORM].lr_scale == table[Role.BIAS].lr_scale == 1
    assert table[Role.EMBEDDING].init_std == 0.08
    seven_decimals = {"abs": 5.1e-8, "rel": 0}
    assert table[Role.HIDDEN_IN].init_std == pytest.approx(std_hidden, **seven_decimals)
    assert table[Role.ATTENTION_OUT].init_std == pytest.approx(std_out, **seven_decimals)
    assert table[Role.FFN_OUT].init_std == pytest.approx(std_out, **seven_decimals)
    assert forward.logits == pytest.approx(logit_scale, **seven_decimals)
    assert forward.attention_scale == 1 / d_head
    assert forward.embedding == 10


def test_published_losses_against_the_scaling_laws() -> None:
    """The paper reports residuals of 0.66 % (standard) and 0.04 % (muP), muP 0.43 % below the standard law.

    Bounds: the last printed digit of those figures, and for our three-digit muP constants 0.01 % more.
    """
    recipes = [RECIPES[size] for size in SIZES]
    standard = [100 * (r.test_loss / STANDARD_LAW.loss(r.headline_flops) - 1) for r in recipes]
    assert pstdev(standard) == pytest.approx(0.66, abs=0.015)
    twins = [RECIPES[f"{size}-muP"] for size in MUP_SIZES]
    own = [100 * (r.test_loss / MUP_LAW.loss(r.flops()) - 1) for r in twins]
    assert max(map(abs, own)) < 0.1 and math.sqrt(fmean(x * x for x in own)) < 0.055
    gain = [100 * (r.test_loss / STANDARD_LAW.loss(r.headline_flops) - 1) for r in twins]
    assert fmean(gain) == pytest.approx(-0.43, abs=0.015)


def test_predictions_for_the_seven_sizes() -> None:
    """Independently computed from equation 1 at the headline FLOPs; ours differ by the softmax term only."""
    expected = (2.603, 2.369, 2.168, 1.992, 1.849, 1.687, 1.580)
    for size, loss in zip(SIZES, expected, strict=True):
        # Two printed digits of the FLOPs leave up to 4 %, so 0.0737 * 4 % = 0.3 % of the reducible loss.
        assert RECIPES[size].predicted_loss == pytest.approx(loss, rel=3e-3)
