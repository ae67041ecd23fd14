"""A NaN or an infinity anywhere in an input must be seen in the result, the loss or a gradient.

The training step relies on it: it looks at the loss and at the norm of the gradients, and skips the step.
Then AdamW and the norm themselves, repeated runs, and strided inputs.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ops_lab import (
    COMPILED,
    TORCH,
    E,
    excess,
    labels_for,
    leaf,
    need_attention,
    need_int8,
    need_kernels,
    normal,
)
from wafergpt.kernels import build
from wafergpt.ops import cpu, dispatch, reference

INT8 = "int8"
BAD = [math.nan, math.inf, -math.inf]


@pytest.fixture(params=[COMPILED, INT8, TORCH])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == TORCH:
        monkeypatch.setattr(build, "library", lambda: None)
    elif request.param == INT8:
        need_int8()
    else:
        need_kernels()
    return str(request.param)


def results(op: str, inputs: list[Tensor], path: str) -> list[Tensor]:
    """Everything `op` gives: its output, then the gradient of each input."""
    leaves = [leaf(t) for t in inputs]
    int8 = path == INT8
    if op == "layer_norm":
        out = dispatch.layer_norm(*leaves, 1e-5, torch.bfloat16)
    elif op == "linear":
        out = dispatch.linear(*leaves, int8=int8)
    elif op in ("gelu_erf", "gelu_tanh"):
        out = dispatch.gelu(*leaves, op == "gelu_tanh")
    elif op == "attention":
        out = dispatch.causal_attention_packed(*leaves, 2, 0.2)
    else:
        labels = labels_for(leaves[0].shape[0], leaves[1].shape[0], 0, 3)
        out = dispatch.linear_cross_entropy(*leaves, labels, 1.0, int8=int8)[0]
    out.backward(normal(*out.shape, seed=9).to(out.dtype))
    return [out.detach(), *(t.grad for t in leaves)]


INPUTS = {
    "layer_norm": [normal(5, 33, seed=1).float(), normal(33, seed=2).float(), normal(33, seed=3).float()],
    "linear": [normal(70, 65, seed=1), normal(67, 65, seed=2), normal(67, seed=3).float()],
    "gelu_erf": [normal(50, seed=1)],
    "gelu_tanh": [normal(50, seed=1)],
    "attention": [normal(1, 70, 3 * 2 * 32, seed=1)],
    "cross_entropy": [normal(13, 32, seed=1), normal(70, 32, seed=2)],
}


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("op", INPUTS)
def test_a_bad_number_is_seen(path: str, op: str, bad: float) -> None:
    """At the first place, the last, and some between, of each input; ignored labels' rows included."""
    if op == "attention" and path != TORCH:
        need_attention()
    for which, clean in enumerate(INPUTS[op]):
        for place in {0, clean.numel() - 1, *range(7, clean.numel(), max(11, clean.numel() // 13))}:
            spoiled = [t.clone() for t in INPUTS[op]]
            spoiled[which].view(-1)[place] = bad
            seen = [not bool(t.isfinite().all()) for t in results(op, spoiled, path)]
            may_vanish = op.startswith("gelu") and bad == -math.inf  # its limit is 0
            assert any(seen) or may_vanish, f"{bad} at {place} of input {which} vanished"


@pytest.mark.parametrize("op", INPUTS)
def test_clean_inputs_give_finite_results_and_equal_bits_again(path: str, op: str) -> None:
    if op == "attention" and path != TORCH:
        need_attention()
    first, again = results(op, INPUTS[op], path), results(op, INPUTS[op], path)
    assert all(bool(t.isfinite().all()) for t in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("op", ["linear", "attention"])
def test_a_bad_row_stays_out_of_the_others(path: str, op: str) -> None:
    """Another sequence of the batch, or an earlier block of 64 positions, has nothing to do with it."""
    if op == "attention" and path != TORCH:
        need_attention()
        qkv = normal(2, 70, 3 * 2 * 32, seed=1)
        qkv[1, 66, 70] = math.nan
        out = dispatch.causal_attention_packed(qkv, 2, 0.2)
        assert bool(out[0].isfinite().all()) and not bool(out[1, 66:].isfinite().all())
        assert path == TORCH or bool(out[1, :64].isfinite().all())
    else:
        # A width of whole tiles, as every published one: see the footgun on oneDNN's rests.
        x, weight, bias = normal(70, 64, seed=1), normal(67, 64, seed=2), normal(67, seed=3).float()
        x[3, 5] = math.nan
        out = dispatch.linear(x, weight, bias, int8=path == INT8)
        assert bool(out[3].isnan().all())
        assert bool(torch.cat([out[:3], out[4:]]).isfinite().all())


@pytest.mark.parametrize("op", ["layer_norm", "linear", "gelu_erf", "attention", "cross_entropy"])
def test_strided_inputs(path: str, op: str) -> None:
    """A view with gaps between its rows gives what its copy gives."""
    if op == "attention" and path != TORCH:
        need_attention()
    first, *others = INPUTS[op]
    wide = torch.cat([first, first.flip(-1)], -1)
    view = wide[..., : first.shape[-1]]
    assert first.ndim == 1 or not view.is_contiguous()

    def output(x: Tensor) -> Tensor:
        if op == "layer_norm":
            return dispatch.layer_norm(x, *others, 1e-5, torch.bfloat16)
        if op == "linear":
            return dispatch.linear(x, *others, int8=path == INT8)
        if op == "gelu_erf":
            return dispatch.gelu(x, False)
        if op == "attention":
            return dispatch.causal_attention_packed(x, 2, 0.2)
        labels = labels_for(x.shape[0], others[0].shape[0], 0, 3)
        return dispatch.linear_cross_entropy(x, *others, labels, 1.0, int8=path == INT8)[0]

    assert torch.equal(output(view), output(first))


def adamw(update, count: int, grad_dtype: torch.dtype, dtype: torch.dtype, **changes: float) -> list[Tensor]:
    """master, m and v after three updates by `update`."""
    names = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.5}
    state = [
        normal(count, seed=1, dtype=torch.float32).to(dtype),
        *(torch.zeros(count, dtype=dtype) for _ in "mv"),
    ]
    for i in range(3):
        grad = normal(count, seed=2 + i, scale=1e-3).to(grad_dtype)
        update(state[0], grad, *state[1:], reference.AdamWStep(step=i + 1, **(names | changes)))
    return state


def adamw_bounds(want: list[Tensor], lr: float) -> list[Tensor]:
    """1 - beta is formed in float32, so errs by E / (1 - beta) <= 20 E; a few roundings more in each of three
    updates; the update itself is at most lr / (1 - beta1) a step in size."""
    relative = 3 * (20 + 8) * E
    m = relative * want[1].abs() + 3 * 8 * E * 1e-3
    return [3 * 4 * E * want[0].abs() + 3 * 3 * lr * relative * 4, m, relative * want[2] + 1e-12 * E]


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 17, 16_384, 16_385, 40_001])
def test_adamw(count: int, grad_dtype: torch.dtype) -> None:
    need_kernels()
    got = adamw(cpu.adamw_step, count, grad_dtype, torch.float32)
    want = adamw(reference.adamw_step, count, grad_dtype, torch.float64)
    for three in zip(got, want, adamw_bounds(want, 1e-2), strict=True):
        assert excess(*three) <= 1


@pytest.mark.parametrize(
    "change", [{"eps": 1e-4}, {"weight_decay": 0.0}, {"grad_scale": 0.501}, {"betas": (0.9, 0.951)}]
)
def test_adamw_planted_bugs(change: dict[str, float]) -> None:
    need_kernels()
    got = adamw(cpu.adamw_step, 1000, torch.float32, torch.float32)
    want = adamw(reference.adamw_step, 1000, torch.float32, torch.float64, **change)
    assert max(excess(*three) for three in zip(got, want, adamw_bounds(want, 1e-2), strict=True)) > 1


def test_adamw_is_torchs() -> None:
    """The definition itself, against torch.optim.AdamW."""
    parameter = torch.nn.Parameter(normal(100, seed=1, dtype=torch.float32).double())
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for i in range(3):
        parameter.grad = 0.5 * normal(100, seed=2 + i, scale=1e-3).double()
        optimizer.step()
    ours = adamw(reference.adamw_step, 100, torch.float64, torch.float64)[0]
    assert excess(ours, parameter.detach(), 1e-14) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 100, 16_384, 16_385, 50_000])
def test_sum_of_squares(count: int, dtype: torch.dtype) -> None:
    """Blocks of 16,384 are summed in float32."""
    need_kernels()
    x = normal(count, seed=1, dtype=dtype)
    want = float(x.double().square().sum())
    bound = (min(count, 16_384) + 2) * E * want
    assert abs(cpu.sum_of_squares(x) - want) <= bound
    assert abs(cpu.sum_of_squares(x * 1.01) - want) > bound  # planted
    for bad in BAD:
        x[count // 2] = bad
        assert not math.isfinite(float(dispatch.sum_of_squares([x])))
