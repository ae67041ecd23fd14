"""AdamW against torch's own, the parameter rules, clipping and the epsilon rule."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_config

from wafergpt.model.config import GPTConfig, MuPConfig, Parametrization
from wafergpt.model.gpt import GPT
from wafergpt.training import optim
from wafergpt.training.config import OptimConfig
from wafergpt.training.loop import prepare
from wafergpt.training.state import TrainState

OPTIM = OptimConfig(peak_lr=1e-2)
MUP = GPTConfig(
    d_model=64, n_layers=2, n_heads=4, d_ffn=128, vocab_size=97, max_seq_len=8,
    parametrization=Parametrization.MUP, mup=MuPConfig(base_d_model=32, base_d_ffn=128),
)  # fmt: skip


def test_rules_come_from_the_parametrisation() -> None:
    rules = optim.update_rules(MUP, OPTIM, MUP.parameter_shapes())
    assert set(rules) == set(MUP.parameter_shapes())
    assert rules["wte.weight"] == optim.UpdateRule(lr_scale=1.0, weight_decay=0.1)
    assert rules["h.1.attn.c_attn.weight"] == optim.UpdateRule(lr_scale=0.5, weight_decay=0.1)  # 32 / 64
    assert rules["h.1.mlp.c_proj.weight"] == optim.UpdateRule(lr_scale=1.0, weight_decay=0.1)  # 128 / 128
    undecayed = {name for name, rule in rules.items() if rule.weight_decay == 0}
    assert undecayed == {name for name in rules if name.endswith("bias") or ".ln_" in name or "ln_f" in name}


def largest_difference_from_torch(change: dict[str, object]) -> float:
    """Our masters against torch.optim.AdamW with torch's clipping: 10 updates with the same random gradients.

    `change` replaces constants on our side only.
    """
    optim_config = OptimConfig(peak_lr=1e-2, clip_norm=0.5)
    ours = dataclasses.replace(optim_config, **change)
    model = GPT(MUP, seed=3)
    state = TrainState.fresh(dict(model.named_parameters()))
    rules = optim.update_rules(MUP, ours, state.master)
    decays = optim.update_rules(MUP, optim_config, state.master)
    named = list(model.named_parameters())
    groups = [
        {"params": [p], "lr": 1e-2 * decays[n].lr_scale, "weight_decay": decays[n].weight_decay}
        for n, p in named
    ]
    theirs = torch.optim.AdamW(groups, betas=optim_config.betas, eps=optim_config.eps)
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        grads = {n: torch.randn(p.shape, generator=random) for n, p in named}
        factor = optim.clip_factor(optim.global_norm(grads.values()), ours.clip_norm)
        optim.update(state, state.master, grads, rules, ours, lr=ours.peak_lr, grad_scale=factor)
        state.count_step(1, skipped=False)
        for name, parameter in named:
            parameter.grad = grads[name]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        theirs.step()
    return max(float((state.master[n] - p.detach()).abs().max()) for n, p in named)


# Each update is at most about lr = 1e-2 per element, computed with some 8 roundings of 2^-24, and stored with
# one more of a weight below 2: 10 x (1e-2 x 8 x 6e-8 + 1.2e-7) = 1.3e-6. The 1e-6 that torch adds to a norm
# near 250 is far below that.
TOLERANCE = 1.5e-6


def test_ten_updates_equal_torch_adamw() -> None:
    assert largest_difference_from_torch({}) < TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.11},
        {"betas": (0.9, 0.951)},
        {"eps": 1e-7},
        {"clip_norm": 0.4},
        {"peak_lr": 1.001e-2},
    ],
)
def test_the_comparison_sees_a_changed_constant(change: dict[str, object]) -> None:
    assert largest_difference_from_torch(change) > TOLERANCE


def test_clipping_leaves_small_gradients_alone() -> None:
    assert optim.clip_factor(0.9, 1.0) == 1.0
    assert optim.clip_factor(4.0, 1.0) == 0.25
    assert optim.clip_factor(4.0, None) == 1.0


def test_global_norm_is_over_all_tensors() -> None:
    grads = [torch.full((3, 3), 2.0), torch.full((7,), -4.0), torch.full((2,), 1.5).bfloat16()]
    assert math.isclose(optim.global_norm(grads), math.sqrt(9 * 4 + 7 * 16 + 2 * 2.25), rel_tol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bad_element_makes_the_norm_not_finite(value: float, dtype: torch.dtype) -> None:
    grad = torch.zeros(1000, dtype=dtype)
    grad[777] = value
    assert not math.isfinite(optim.global_norm([torch.zeros(5), grad]))


def test_bf16_weights_are_always_the_rounded_masters(data: Path) -> None:
    trainer = prepare(tiny_config(data))
    for _ in range(3):
        trainer.step()
    for name, parameter in trainer.model.named_parameters():
        master = trainer.state.master[name]
        expected = master.bfloat16() if master.ndim >= 2 else master
        assert parameter.dtype == expected.dtype
        assert torch.equal(parameter, expected), name


def test_epsilon_rule(data: Path) -> None:
    state = prepare(tiny_config(data)).state
    assert optim.epsilon_ceiling(state, OPTIM) == math.inf
    state.step = 3
    for moment in state.exp_avg_sq.values():
        moment.fill_(4e-6 * (1 - 0.95**3))  # v = 4e-6 once bias-corrected
    assert math.isclose(optim.epsilon_ceiling(state, OPTIM), 2e-6, rel_tol=1e-6)  # sqrt(4e-6) / 1000
