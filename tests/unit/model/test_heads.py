"""Heads: they start neutral, read the last real token, and spans are judged within their passage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.model.heads import attach_head, last_of_each, span_loss

CONFIG = GPTConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=11, max_seq_len=8)


def test_a_fresh_head_says_nothing() -> None:
    model = GPT(CONFIG)
    head = attach_head(model, 3)
    hidden = model.packed(torch.tensor([1, 2, 3]), [3])
    assert torch.equal(head(hidden), torch.zeros(3, 3)) and head(hidden).dtype == torch.float32
    assert [name for name, _ in model.named_parameters()][-2:] == ["head.weight", "head.bias"]
    with pytest.raises(ConfigError, match="has a head already"):
        attach_head(model, 3)


def test_a_head_of_known_values() -> None:
    values = {"weight": np.arange(32, dtype=np.float32).reshape(2, 16), "bias": np.array([1, 2], np.float32)}
    head = attach_head(GPT(CONFIG), 2, values)
    assert torch.equal(head(torch.ones(16)), torch.tensor([120.0 + 1, 376.0 + 2]))


def test_the_last_real_token_of_each() -> None:
    hidden = torch.arange(12.0).view(6, 2)
    assert last_of_each(hidden, [1, 3, 2]).tolist() == [[0, 1], [6, 7], [10, 11]]


def test_span_loss_by_hand() -> None:
    scores = torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    outside = -math.inf  # passage of tokens 1 and 2, answer from 2 to 1; then an example of one token
    targets = torch.tensor([[0.0, 0.0, outside], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = -(1 - math.log(1 + math.e)) + math.log(2)
    assert float(span_loss(scores, targets, [3, 1])) == pytest.approx(expected, rel=1e-6)
    targets[1, 2] = 2.0  # for token 1, so that it is the likelier one for both
    expected = -(1 - math.log(math.e**2 + math.e)) - (2 - math.log(math.e**2 + 1))
    assert float(span_loss(scores, targets, [3, 1])) == pytest.approx(expected, rel=1e-6)
    scores.requires_grad_()
    span_loss(scores, targets, [3, 1]).backward()
    assert scores.grad is not None and scores.grad[0].eq(0).all() and scores.grad.isfinite().all()
