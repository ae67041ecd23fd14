"""AdamW over float32 masters: which rule holds for which parameter, clipping, and the update itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wafergpt.model import mup
from wafergpt.model.config import GPTConfig
from wafergpt.ops import dispatch
from wafergpt.ops.reference import AdamWStep
from wafergpt.training.config import OptimConfig, Precision
from wafergpt.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """How one parameter is updated: its learning rate is the schedule's times `lr_scale`."""

    lr_scale: float
    weight_decay: float


def update_rules(model: GPTConfig, optim: OptimConfig, names: Iterable[str]) -> dict[str, UpdateRule]:
    """Parameter name -> rule, from the parametrisation's one table (`model.mup.rules`)."""
    table = mup.rules(model)
    rules = {name: table[mup.role_of(name)] for name in names}
    return {
        name: UpdateRule(lr_scale=rule.lr_scale, weight_decay=optim.weight_decay * rule.weight_decay)
        for name, rule in rules.items()
    }


def bind_weights(model: nn.Module, state: TrainState, precision: Precision) -> dict[str, Tensor]:
    """Make the model compute with the state's weights; returns name -> the tensor it computes with.

    In fp32 that tensor is the master itself. In bf16 and int8 every weight of two or more dimensions is a
    bfloat16 copy that the optimiser refreshes; LayerNorms and biases stay the float32 masters. Weights the
    state does not have are frozen.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        is_copy = precision is not Precision.FP32 and parameter.ndim >= 2
        if name not in state.master:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(torch.bfloat16).contiguous() if is_copy else parameter.data
            continue
        master = state.master[name]
        weights[name] = master.to(torch.bfloat16) if is_copy else master
        parameter.data = weights[name]
    return weights


def global_norm(grads: Iterable[Tensor]) -> float:
    """L2 norm over all elements of all gradients; not finite when any element is not finite.

    A gradient element beyond about 1.8e19, whose square float32 cannot hold, counts as not finite too.
    """
    return math.sqrt(float(dispatch.sum_of_squares(list(grads))))


def clip_factor(norm: float, clip_norm: float | None) -> float:
    """What to multiply a gradient of this finite norm by, so that its norm is at most `clip_norm`."""
    return 1.0 if clip_norm is None or norm <= clip_norm else clip_norm / norm


def update(
    state: TrainState,
    weights: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    rules: Mapping[str, UpdateRule],
    optim: OptimConfig,
    *,
    lr: float,
    grad_scale: float,
) -> None:
    """One AdamW update of every parameter, in place; the gradient is `grad_scale * grads`.

    Defined by `ops.reference.adamw_step`, which is torch.optim.AdamW's form.
    """
    for name, rule in rules.items():
        dispatch.adamw_step(
            state.master[name],
            weights[name],
            grads[name],
            state.exp_avg[name],
            state.exp_avg_sq[name],
            AdamWStep(
                step=state.n_updates + 1,
                lr=lr * rule.lr_scale,
                betas=optim.betas,
                eps=optim.eps,
                weight_decay=rule.weight_decay,
                grad_scale=grad_scale,
            ),
        )


def epsilon_ceiling(state: TrainState, optim: OptimConfig) -> float:
    """The largest Adam epsilon the published rule allows now: sqrt(mean of v) / 1000, v bias-corrected.

    Source: Cerebras-GPT paper (arXiv 2304.03208), which therefore lowers epsilon to 1e-9 for 6.7B and 13B.
    Returns infinity before the first update.
    """
    if state.n_updates == 0:
        return math.inf
    total = sum(float(v.sum(dtype=torch.float64)) for v in state.exp_avg_sq.values())
    n_values = sum(v.numel() for v in state.exp_avg_sq.values())
    correction = 1 - optim.betas[1] ** state.n_updates
    return math.sqrt(total / n_values / correction) / 1000
