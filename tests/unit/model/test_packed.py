"""Examples end to end: each as if it were alone, in values and in gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT
from wafergpt.ops import dispatch

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=61, max_seq_len=16)
LENGTHS = (5, 1, 16, 9)
IDS = torch.randint(0, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5))


def model(**changes: object) -> GPT:
    return GPT(dataclasses.replace(CONFIG, **changes), seed=3).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("parametrization", list(Parametrization))
def test_each_example_is_as_if_alone(parametrization: Parametrization) -> None:
    """Float64: sums of 64 terms at most, so 1e-12 of values of order 1 to 10 leaves room for any order."""
    gpt = model(parametrization=parametrization, init_std=None, mup=None)
    together = gpt.packed(IDS, LENGTHS).split(LENGTHS)
    for ids, hidden in zip(IDS.split(LENGTHS), together, strict=True):
        alone = gpt(ids[None], n_logits=0).last_hidden_state[0]
        assert torch.allclose(hidden, alone, rtol=1e-12, atol=1e-12)


def test_what_a_neighbour_says_changes_no_bit() -> None:
    gpt = model().float()
    other = IDS.clone()
    other[:5] = (other[:5] + 7) % 61
    before, after = gpt.packed(IDS, LENGTHS), gpt.packed(other, LENGTHS)
    assert not torch.equal(before[:5], after[:5])
    assert torch.equal(before[5:], after[5:])


def test_a_model_that_sees_its_neighbours_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: attention over the whole row."""
    attention = dispatch.causal_attention_packed
    monkeypatch.setattr(
        dispatch,
        "causal_attention_packed",
        lambda qkv, n_heads, scale, lengths: attention(qkv, n_heads, scale),
    )
    with pytest.raises(AssertionError):
        test_what_a_neighbour_says_changes_no_bit()


def test_no_gradient_crosses() -> None:
    gpt = model()
    gpt.packed(IDS, LENGTHS)[5:].sum().backward()
    used = set(IDS[5:].tolist())
    grad = gpt.wte.weight.grad
    assert grad is not None
    unused = [i for i in range(61) if i not in used]
    assert torch.count_nonzero(grad[unused]) == 0 and torch.count_nonzero(grad[list(used)]) > 0


def test_bfloat16_takes_the_kernels_for_each_example() -> None:
    gpt = GPT(CONFIG, seed=3).to_compute_dtype(torch.bfloat16)
    together = gpt.packed(IDS, LENGTHS).split(LENGTHS)
    for ids, hidden in zip(IDS.split(LENGTHS), together, strict=True):
        alone = gpt(ids[None], n_logits=0).last_hidden_state[0]
        # bfloat16 keeps 8 bits: 2^-8 of values up to 4, a few roundings deep
        assert (hidden.float() - alone.float()).abs().max() <= 8 * 4 * 2**-8


@pytest.mark.parametrize(
    ("lengths", "words"),
    [((5, 1), "do not fill"), ((0, 31), "do not fill"), ((31,), "position 16 is outside the context window")],
)
def test_wrong_lengths(lengths: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model().packed(IDS, lengths)
