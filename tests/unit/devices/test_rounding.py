"""Operators in the wafer's format, autograd included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import device_lab as lab
from wafergpt import GPT, WSE2
from wafergpt.devices.numerics import FORMATS
from wafergpt.kernels import build
from wafergpt.model.config import GPTConfig
from wafergpt.ops import dispatch
from wafergpt.ops.reference import AdamWStep

SMALL_FORMATS = ("cb16", "fp16", "bf16")


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


def in_format(x: torch.Tensor, name: str) -> bool:
    return torch.equal(FORMATS[name].round(x), x)


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_a_product_rounds_its_inputs_and_its_result_once(name: str) -> None:
    form = FORMATS[name]
    model = nn.Linear(7, 5)
    x = torch.randn(3, 7)
    with WSE2(numerics=name):
        found = model(x)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(form.round(parameter))
    assert torch.equal(found, form.round(rounded(form.round(x))))
    assert not torch.equal(found, model(x))


@pytest.mark.parametrize("name", SMALL_FORMATS)
@pytest.mark.parametrize("case", ["ours, logits", "MLP", "convolutions"])
def test_every_gradient_is_in_the_format_and_the_weights_are_not(name: str, case: str) -> None:
    model_of, loss_of = lab.CASES[case]
    model = model_of()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with WSE2(numerics=name):
        loss = loss_of(model)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    assert in_format(loss.detach(), name)
    assert gradients and all(in_format(gradient, name) for gradient in gradients)
    changed = [p.detach() for p in model.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    assert not all(in_format(p, name) for p in changed)  # 32-bit masters
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert not all(in_format(moment, name) for moment in moments)


def test_a_gradient_is_what_rounded_operators_give() -> None:
    """d/dw of sum((x w)^2) by hand: every operator's result rounded, in autograd's order."""
    form = FORMATS["cb16"]
    x, w = torch.randn(4, 6), torch.randn(6, 2, requires_grad=True)
    with WSE2(numerics="cb16"):
        (x @ w).square().sum().backward()
    x16, w16 = form.round(x), form.round(w.detach())
    y = form.round(x16 @ w16)
    dy = form.round(y * 2)
    assert w.grad is not None
    assert torch.equal(w.grad, form.round(x16.T @ dy))


def test_fp32_leaves_a_float32_model_alone() -> None:
    plain, under, _ = lab.twice("ours, logits", WSE2(numerics="fp32"))
    assert lab.same_bits(plain, under)


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_logits_stay_near_the_exact_ones(name: str) -> None:
    """Each rounding is at most u = 2^-(mantissa bits + 1) of its value.

    The residual stream passes 2 + 4 roundings, each of its four branches about six operators. Errors add at
    most linearly and LayerNorm keeps sizes near one: 30 u of the largest logit, and 10 for the head's inputs.
    """
    model = lab.gpt()
    exact = model(lab.ids()).logits.detach()
    with torch.no_grad(), WSE2(numerics=name):
        found = model(lab.ids()).logits
    unit = 2.0 ** -(FORMATS[name].mantissa_bits + 1)
    error = (found - exact).abs().max() / exact.abs().max()
    assert 0 < error < 40 * unit


def test_training_in_cb16_learns() -> None:
    model = GPT(GPTConfig(d_model=32, n_layers=1, n_heads=2, vocab_size=16, max_seq_len=16))
    rows = torch.arange(17).repeat(2, 1) % 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with WSE2(numerics="cb16"):
            loss = model.loss(rows[:, :-1], rows[:, 1:])
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_statistics_of_fused_operators_keep_their_precision() -> None:
    x = torch.randn(5, 8)
    with WSE2(numerics="cb16"):
        _, mean, _ = torch.native_layer_norm(x, (8,), None, None, 1e-5)
    assert torch.equal(mean, torch.native_layer_norm(FORMATS["cb16"].round(x), (8,), None, None, 1e-5)[1])


def test_in_place_operators_round_what_they_wrote_where_it_is() -> None:
    x = torch.ones(3)
    alias = x.view(3)
    with WSE2(numerics="cb16"):
        x.add_(2.0**-12)  # less than half a unit of cb16 at 1
        x.mul_(1.0 + 2.0**-9)
    assert torch.equal(alias, torch.full((3,), 1.0 + 2.0**-9))


def test_integers_and_views_pass() -> None:
    ids, x = torch.arange(5) + 70_000, torch.randn(2, 6)
    with WSE2(numerics="fp16"):
        assert torch.equal(ids + 1, torch.arange(5) + 70_001)
        view = x.view(3, 4)
        assert view.data_ptr() == x.data_ptr()
    assert not in_format(x, "fp16")  # the caller's tensor is as it was


@pytest.mark.skipif(build.library() is None, reason="no native training kernels")
def test_native_kernels_step_aside_but_for_the_optimiser() -> None:
    """Their results cannot be rounded from outside; AdamW is not rounded anyway."""
    model = lab.gpt(torch.bfloat16)
    master = torch.randn(8)
    state = [torch.zeros(8), torch.zeros(8)]
    step = AdamWStep(step=1, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_scale=1.0)
    with WSE2(numerics="cb16") as wafer:
        lab.our_loss(model).backward()
        dispatch.adamw_step(master, master, torch.ones(8), *state, step)
    native = {op.name for op in wafer.workload.ops if op.name.startswith("wafergpt::")}
    assert native == {"wafergpt::adamw"}
    assert {op.phase for op in wafer.workload.ops if op.name == "wafergpt::adamw"} == {"optimizer"}
    assert not in_format(master, "cb16")


def test_a_rounding_that_is_left_out_is_seen() -> None:
    """Planted: the oracle of the gradient test without the rounding of the inner result."""
    form = FORMATS["cb16"]
    x, w = torch.randn(4, 6), torch.randn(6, 2, requires_grad=True)
    with WSE2(numerics="cb16"):
        (x @ w).square().sum().backward()
    x16, w16 = form.round(x), form.round(w.detach())
    assert w.grad is not None
    assert not torch.equal(w.grad, form.round(x16.T @ (2 * (x16 @ w16))))
