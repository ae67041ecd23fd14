"""Head and loss in float32 against the same formula in float64, within what float32 can lose.

u = 2^-24. A sum of n products is off by at most g(n) = n u / (1 - n u) times the sum of their magnitudes
(Higham 2002, section 3.1), in any order, so chunks change nothing. exp and log of torch are taken to be
good to 4 u, which is generous.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wafergpt.ops import dispatch, head, reference
from wafergpt.ops.watch import torch_only

U = 2.0**-24
N, D, V, SCALE = 30, 33, 257, 0.25


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=draw)
    weight = torch.randn(V, D, generator=draw) * 0.6
    labels = torch.randint(V, (N,), generator=draw)
    labels[::7] = -100
    return hidden, weight, labels


def by(function: object, hidden: Tensor, weight: Tensor, labels: Tensor, factor: float = 3.0) -> list[Tensor]:
    """Loss, and the gradients of `factor` times it."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, n = function(hidden, weight, labels, SCALE)  # type: ignore[operator]
    (factor * loss).backward()
    assert int(n) == int((labels != -100).sum()) and hidden.grad is not None and weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


def g(n: int) -> float:
    return n * U / (1 - n * U)


def bounds(hidden: Tensor, weight: Tensor, labels: Tensor, factor: float = 3.0) -> list[Tensor]:
    """Of loss, dhidden and dweight, in float64."""
    hidden, weight = hidden.double(), weight.double()
    counted = (labels != -100)[:, None]
    z = SCALE * hidden @ weight.T
    dz = g(D + 1) * SCALE * hidden.abs() @ weight.abs().T  # the products and the scale
    dz = dz.max(1, keepdim=True).values  # a row's logits are all off by at most this
    nats = z.logsumexp(1, keepdim=True) - z
    dnats = 2 * dz + (g(V) + 8 * U) * (
        1 + nats.max(1, keepdim=True).values + z.abs().max(1, keepdim=True).values
    )
    loss = (dnats * counted).sum() + 2 * U * (nats * counted).max() * N
    p = torch.exp(-nats)
    dp = p * (torch.expm1(dnats) + 5 * U) + 2 * U  # and the subtraction at the label
    row = p * counted
    row[torch.arange(N), labels.clamp(min=0)] += 1.0
    row = row * counted
    dhidden = SCALE * factor * ((dp * counted) @ weight.abs() + (g(V) + 4 * U) * row @ weight.abs())
    dweight = SCALE * factor * ((dp * counted).T @ hidden.abs() + (g(N) + 4 * U) * row.T @ hidden.abs())
    return [loss, dhidden, dweight]


@pytest.mark.parametrize("rows", [1, 7, 10, 29, 30, 64])
def test_gradients_of_the_forward_pass(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rows: chunks that divide them, leave one row over, hold them exactly, and are larger."""
    monkeypatch.setattr(head, "CHUNK_VALUES", rows * V)
    monkeypatch.setattr(head, "MIN_ROWS", 1)
    hidden, weight, labels = inputs()
    got = by(dispatch.linear_cross_entropy, hidden, weight, labels)
    want = by(reference.linear_cross_entropy, hidden.double(), weight.double(), labels)
    for name, ours, theirs, bound in zip(
        ("loss", "dhidden", "dweight"), got, want, bounds(hidden, weight, labels), strict=True
    ):
        assert ours.dtype == torch.float32
        assert ((ours.double() - theirs).abs() <= bound).all(), name
    assert not got[1][labels == -100].any()


def test_the_bounds_catch_planted_bugs() -> None:
    """Another label in one row, one row left out, all logits a thousandth too large."""
    hidden, weight, labels = inputs()
    limits = bounds(hidden, weight, labels)
    right = by(reference.linear_cross_entropy, hidden.double(), weight.double(), labels)
    other = labels.clone()
    other[1] = (other[1] + 1) % V
    fewer = labels.clone()
    fewer[1] = -100
    wrong = [
        by(reference.linear_cross_entropy, hidden.double(), weight.double(), other),
        by(reference.linear_cross_entropy, hidden.double(), weight.double(), fewer),
        by(reference.linear_cross_entropy, hidden.double() * (1 + 1e-3), weight.double(), labels),
    ]
    for values in wrong:
        for ours, theirs, bound in zip(values, right, limits, strict=True):
            assert ((ours - theirs).abs() > bound).any()


def test_only_what_is_wanted_is_made() -> None:
    hidden, weight, labels = inputs()
    full = by(dispatch.linear_cross_entropy, hidden, weight, labels, 1.0)
    for wanted in (0, 1):
        leaves = [hidden.clone().requires_grad_(wanted == 0), weight.clone().requires_grad_(wanted == 1)]
        dispatch.linear_cross_entropy(*leaves, labels, SCALE)[0].backward()
        assert torch.equal(leaves[wanted].grad, full[1 + wanted]) and leaves[1 - wanted].grad is None  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(dispatch.linear_cross_entropy(hidden, weight, labels, SCALE)[0], full[0])


def test_no_label_and_an_impossible_one() -> None:
    hidden, weight, labels = inputs()
    loss, *grads = by(dispatch.linear_cross_entropy, hidden, weight, torch.full_like(labels, -100))
    assert loss == 0 and not any(grad.any() for grad in grads)
    hidden[3] = torch.nan
    loss, dhidden, _ = by(dispatch.linear_cross_entropy, hidden, weight, labels)
    assert math.isnan(loss) and dhidden[3].isnan().all() and dhidden[torch.arange(N) != 3].isfinite().all()


def test_a_device_that_watches_sees_torch_alone() -> None:
    """Under a wafer the head is PyTorch's operators, whose gradients it counts one by one."""
    hidden, weight, labels = inputs()
    with torch_only():
        loss = dispatch.linear_cross_entropy(hidden.requires_grad_(), weight, labels, SCALE)[0]
    assert loss.grad_fn is not None and "LinearCrossEntropy" not in loss.grad_fn.name()
