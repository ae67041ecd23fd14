"""Our forward pass against Transformers' GPT-2, an independent implementation, on tiny random models.

The four shapes people use, output by output; test_gpt2_options.py has every option and 20,000 positions.
The tolerances are derived in gpt2_lab.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpt2_lab import assert_close, random_model, theirs_as_ours, twin
from wafergpt.model.config import Activation, GPTConfig

pytest.importorskip("transformers")

TINY = GPTConfig(d_model=48, n_layers=3, n_heads=4, vocab_size=97, max_seq_len=32)
CONFIGS = {
    "cerebras": TINY,
    "gpt2": replace(TINY, activation=Activation.GELU_TANH),
    "narrow_ffn": replace(TINY, d_ffn=40),
    "one_head": replace(TINY, n_heads=1, layer_norm_eps=1e-3),
}


def ids(config: GPTConfig, n_rows: int = 3, n_positions: int = 17) -> Tensor:
    return torch.randint(
        0, config.vocab_size, (n_rows, n_positions), generator=torch.Generator().manual_seed(2)
    )


def padding(side: str, n_positions: int) -> Tensor | None:
    """Rows of 17, 9 and 1 real tokens."""
    if side == "none":
        return None
    counts = torch.tensor([n_positions, 9, 1])[:, None]
    places = torch.arange(n_positions)[None]
    return (places < counts if side == "right" else places >= n_positions - counts).long()


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, dtype: torch.dtype, side: str) -> None:
    model = random_model(CONFIGS[name], dtype)
    input_ids = ids(model.config)
    mask = padding(side, input_ids.shape[1])
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)  # theirs must be told
    with torch.no_grad():
        ours = model(input_ids, attention_mask=mask).logits
        theirs = twin(model)(input_ids, attention_mask=mask, position_ids=positions).logits
    assert_close(ours, theirs, mask, dtype)
    real = slice(None) if mask is None else mask.bool()
    assert torch.equal(ours[real].argmax(-1), theirs[real].argmax(-1))


def test_hidden_states_attentions_and_explicit_positions() -> None:
    model = random_model(TINY, torch.float64)
    input_ids = ids(TINY)
    positions = torch.arange(17).flip(0).expand(3, -1) + 5
    options = {"position_ids": positions, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours = model(input_ids, **options)
        theirs = twin(model, "GPT2Model")(input_ids, **options)
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, None, torch.float64)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == TINY.n_layers + 1
    assert len(ours.attentions) == len(theirs.attentions) == TINY.n_layers
    for a, b in zip(
        (*ours.hidden_states, *ours.attentions), (*theirs.hidden_states, *theirs.attentions), strict=True
    ):
        assert a.shape == b.shape
        assert_close(a, b, None, torch.float64)


def test_loss_and_gradients() -> None:
    model = random_model(TINY, torch.float64)
    theirs = twin(model)
    input_ids = ids(TINY)
    labels = torch.cat([input_ids[:, 1:], torch.full((3, 1), -100)], dim=1)  # theirs shifts by itself
    loss = model.loss(input_ids, labels)
    their_loss = theirs(input_ids, labels=input_ids).loss
    # Everything is float64 but their loss, which goes through float32: 6e-8 of a number near 5.
    assert abs(loss.item() - their_loss.item()) < 1e-6
    loss.backward()
    their_loss.backward()
    found = dict(theirs.transformer.named_parameters())
    for name, parameter in model.named_parameters():
        their_grad = theirs_as_ours(name, found[name].grad)
        # Theirs passes through float32 at the logits: 6e-8 relative, of the largest gradient.
        assert (parameter.grad - their_grad).abs().max() <= 1e-6 * their_grad.abs().max(), name


def test_planted_bug_is_caught() -> None:
    """The comparison can fail: the other GELU is well beyond the tolerance."""
    model = random_model(TINY, torch.float32)
    theirs = twin(model)
    for block in model.h:
        block.mlp.tanh = True
    input_ids = ids(TINY)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_close(model(input_ids).logits, theirs(input_ids).logits, None, torch.float32)
