"""muP is tested, not believed: the coordinate check of Yang et al. (microsoft/mup; nanoGPT-mup's metrics).

Ten AdamW steps at widths 64 to 1024; under muP the mean |activation| must not depend on the width, so
the slope of its logarithm over log width lies within 0.1 of zero. Under the standard parametrisation at
the same learning rate what matrices write grows like a power of the width. The embedding is no matrix
product: a look-up, whose Adam updates have the same size at any width, under both parametrisations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wafergpt.model import mup
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT

# Runs per width. One run's activations scatter by 5 to 20 % (most where it is narrow), the slope over one
# run each by 0.06; with these, by 0.02 (four streams of data: attention -0.04 to -0.07, MLP -0.02 to -0.03).
SEEDS = {64: 12, 128: 6, 256: 4, 512: 2, 1024: 2}
# A third of the published muP runs' peak (6e-3), which they reach by warming up; at the peak, ten cold
# steps scatter three times as much.
LEARNING_RATE = 2e-3
VOCAB_SIZE = 256
N_STEPS = 10
FLAT = 0.1  # |slope| allowed under muP: widths span a factor 16, so 32 % from end to end
GROWS = 0.25  # slope demanded under standard: a factor 2 from end to end


def batch(step: int) -> tuple[Tensor, Tensor]:
    """[8, 16] tokens of a noisy counting language: something to learn, so that updates align."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCAB_SIZE, (8, 1), generator=generator)
    noise = torch.randint(0, 2, (8, 17), generator=generator)
    ids = (start + torch.arange(17) * 3 + noise) % VOCAB_SIZE
    return ids[:, :-1], ids[:, 1:]


def train(config: GPTConfig, seed: int) -> GPT:
    """Ten steps with one learning rate per role, as the table says."""
    model = GPT(config, seed=seed)
    table = mup.rules(config)
    groups = [
        {"params": [parameter], "lr": LEARNING_RATE * table[mup.role_of(name)].lr_scale}
        for name, parameter in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
    for step in range(N_STEPS):
        optimizer.zero_grad()
        model.loss(*batch(step)).backward()
        optimizer.step()
    return model


def activations(model: GPT) -> dict[str, float]:
    """Mean |value| of what the embedding and, averaged over layers, attention and MLP write."""
    found: dict[str, list[float]] = {"embedding": [], "attention": [], "mlp": []}

    def note(kind: str, output: Tensor) -> None:
        found[kind].append(output.abs().mean().item())

    for block in model.h:
        block.attn.register_forward_hook(lambda _m, _i, output: note("attention", output[0]))
        block.mlp.register_forward_hook(lambda _m, _i, output: note("mlp", output))
    with torch.no_grad():
        output = model(batch(0)[0], n_logits=0, output_hidden_states=True)
    note("embedding", output.hidden_states[0])
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def slopes(parametrization: Parametrization, seeds: dict[int, int]) -> dict[str, float]:
    """d log(mean |activation|) / d log(width) after the steps; `seeds` is the number of runs per width."""
    points: dict[str, list[tuple[float, float]]] = {"embedding": [], "attention": [], "mlp": []}
    for width, n_seeds in seeds.items():
        config = GPTConfig(
            d_model=width,
            n_layers=2,
            n_heads=width // 32,
            vocab_size=VOCAB_SIZE,
            max_seq_len=16,
            parametrization=parametrization,
        )
        runs = [activations(train(config, seed)) for seed in range(n_seeds)]
        for kind, found in points.items():
            found.append((math.log(width), float(np.mean([math.log(run[kind]) for run in runs]))))
    return {kind: float(np.polyfit(*zip(*found, strict=True), 1)[0]) for kind, found in points.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are small: a second thread gains little and waits for other workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_mup_activations_do_not_depend_on_the_width() -> None:
    found = slopes(Parametrization.MUP, SEEDS)
    assert all(abs(slope) <= FLAT for slope in found.values()), found


def test_standard_activations_grow_with_the_width() -> None:
    found = slopes(Parametrization.STANDARD, dict.fromkeys(SEEDS, 1))
    assert found["attention"] > GROWS, found
    assert found["mlp"] > GROWS, found


def test_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that learn at the base rate whatever their width: the check must see it."""
    right = mup.rules
    monkeypatch.setattr(
        mup,
        "rules",
        lambda config: {role: replace(rule, lr_scale=1.0) for role, rule in right(config).items()},
    )
    found = slopes(Parametrization.MUP, dict.fromkeys((64, 128, 256, 512), 1))
    assert max(found["attention"], found["mlp"]) > GROWS, found
