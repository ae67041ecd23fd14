"""The fold: the same logits from a standard model, and nothing else changed.

Tolerance: in float64 each folded value is rounded once (1e-16); through two layers a few hundred roundings
meet, so 1e-12 of the largest logit is ample. A wrong factor changes logits by a tenth and more.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model_lab import MUP, STANDARD, stored_model
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.model.config import Activation, GPTConfig, MuPConfig
from wafergpt.model.gpt import GPT

WIDE = dataclasses.replace(
    MUP,
    d_ffn=50,
    n_heads=4,
    activation=Activation.GELU_TANH,
    mup=MuPConfig(base_d_model=7, base_d_ffn=9, embedding_multiplier=0.3, output_multiplier=4.0),
)


def in_float64(model: StoredModel) -> StoredModel:
    return dataclasses.replace(model, arrays={n: model.arrays[n].astype(np.float64) for n in model.arrays})


def logits(model: StoredModel) -> torch.Tensor:
    """In the dtype of the arrays, whatever `GPT.from_arrays` would make of them."""
    gpt = GPT(model.config).double()
    gpt.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(model.arrays[n])) for n in model.arrays})
    with torch.no_grad():
        return gpt(torch.arange(2 * model.config.max_seq_len).view(2, -1) % model.config.vocab_size).logits


def difference(a: StoredModel, b: StoredModel) -> float:
    left, right = logits(a), logits(b)
    return float((left - right).abs().max() / left.abs().max())


@pytest.mark.parametrize("config", [MUP, WIDE], ids=["mup", "wide"])
def test_same_logits_in_float64(config: GPTConfig) -> None:
    model = in_float64(stored_model(config))
    folded = fold(model)
    assert folded.config.mup is None
    assert all(array.dtype == np.float64 for array in folded.arrays.values())
    assert difference(model, folded) < 1e-12


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "ln_f.bias", "h.1.attn.c_attn.weight"])
def test_the_comparison_would_see_a_forgotten_factor(name: str) -> None:
    model = in_float64(stored_model(MUP))
    folded = fold(model)
    planted = dataclasses.replace(folded, arrays={**folded.arrays, name: model.arrays[name]})
    assert difference(model, planted) > 1e-3


def test_a_standard_model_is_returned_as_it_is() -> None:
    model = stored_model(STANDARD)
    assert fold(model) is model


def test_only_the_folded_arrays_differ_and_the_originals_stay() -> None:
    model = stored_model(MUP)
    before = {name: array.copy() for name, array in model.arrays.items()}
    folded = fold(model)
    changed = {name for name in model.arrays if not np.array_equal(folded.arrays[name], before[name])}
    queries = {f"h.{layer}.attn.c_attn.{kind}" for layer in range(2) for kind in ("weight", "bias")}
    assert changed == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"} | queries
    for name in queries:  # keys and values are not scaled
        np.testing.assert_array_equal(folded.arrays[name][32:], before[name][32:])
    for name in before:
        np.testing.assert_array_equal(model.arrays[name], before[name])
    assert "muP folded" in folded.notes[-1] and folded.tokenizer is model.tokenizer


def test_the_fold_keeps_a_transposed_views_order() -> None:
    model = stored_model(MUP)
    name = "h.0.attn.c_attn.weight"
    transposed = np.asfortranarray(model.arrays[name])
    folded = fold(dataclasses.replace(model, arrays={**model.arrays, name: transposed}))
    assert folded.arrays[name].flags.f_contiguous
