"""Models and training steps that the tests of the device run twice, under it and without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wafergpt import GPT, WSE2, GPTConfig
from wafergpt.wafer.report import Report

SMALL = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=96, max_seq_len=24)
ROWS = 3


def ids(seed: int = 0, rows: int = ROWS, length: int = SMALL.max_seq_len, vocab: int = 96) -> Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def our_loss(model: nn.Module) -> Tensor:
    assert isinstance(model, GPT)
    return model.loss(ids(), ids(1))


def our_plain_loss(model: nn.Module) -> Tensor:
    """Logits at once and PyTorch's loss: nothing is computed again in the backward pass."""
    return nn.functional.cross_entropy(model(ids()).logits.flatten(0, 1), ids(1).flatten())


def gpt(dtype: torch.dtype = torch.float32) -> GPT:
    return GPT(SMALL).to_compute_dtype(dtype)


def transformers_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=SMALL.n_layers, n_embd=SMALL.d_model, n_head=SMALL.n_heads, n_positions=SMALL.max_seq_len,
        vocab_size=SMALL.vocab_size, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def transformers_loss(model: nn.Module) -> Tensor:
    loss: Tensor = model(input_ids=ids(), labels=ids()).loss
    return loss


def autocast_loss(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return transformers_loss(model)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(10, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 4), nn.Softplus()
    )


def mlp_loss(model: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 60).view(6, 10)
    return nn.functional.mse_loss(model(x), torch.ones(6, 4))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1),
        nn.GELU(),
        nn.GroupNorm(2, 8),
        nn.Conv1d(8, 8, 3, groups=2),
        nn.Flatten(),
    )


def convolutional_loss(model: nn.Module) -> Tensor:
    out: Tensor = model(torch.linspace(-1, 1, 2 * 4 * 9).view(2, 4, 9))
    return out.square().mean()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "ours": (gpt, our_loss),
    "ours, logits": (gpt, our_plain_loss),
    "ours, bfloat16": (lambda: gpt(torch.bfloat16), our_loss),
    "Transformers": (transformers_gpt2, transformers_loss),
    "Transformers, autocast": (transformers_gpt2, autocast_loss),
    "MLP": (mlp, mlp_loss),
    "convolutions": (convolutional, convolutional_loss),
}


def adamw(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, **options)


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module], Tensor],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    device: WSE2 | None = None,
    steps: int = 2,
) -> tuple[list[Tensor], Report | None]:
    """Loss, gradients, weights, buffers, optimiser state after `steps` clipped steps; the report."""
    torch.manual_seed(7)  # dropout
    optimizer = optimizer_of(model)
    if device is not None:
        device.start()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    report = None if device is None else device.stop()
    found = [loss.detach(), *model.parameters(), *model.buffers()]
    found += [p.grad for p in model.parameters() if p.grad is not None]
    for state in optimizer.state.values():
        found += [x for x in state.values() if isinstance(x, torch.Tensor)]
    return [x.detach() for x in found], report


def twice(name: str, device: WSE2, **optimizer_options: Any) -> tuple[list[Tensor], list[Tensor], Report]:
    """(without, under the device, report) of the case `name`."""
    model_of, loss_of = CASES[name]
    model = model_of()
    twin = copy.deepcopy(model)
    plain, _ = train(model, loss_of, adamw(**optimizer_options))
    under, report = train(twin, loss_of, adamw(**optimizer_options), device)
    assert report is not None
    return plain, under, report


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )
