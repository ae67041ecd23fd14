"""What the proof looks at sees every small change, and its bounds hold where they are said to hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model_lab import MUP, STANDARD, TANH, stored_model
from wafergpt.checkpoints.gguf.layout import TensorType
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.conversion import proof
from wafergpt.errors import ConfigError
from wafergpt.evaluation.parity import battery, compare
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer

F32, F16, BF16, Q8_0, Q4_0 = (TensorType[n] for n in ("F32", "F16", "BF16", "Q8_0", "Q4_0"))
PROMPTS = battery(None, STANDARD.vocab_size, STANDARD.max_seq_len)


def kinds(config: GPTConfig, kind: TensorType) -> dict[str, tuple[TensorType]]:
    return dict.fromkeys(config.parameter_shapes(), (kind,))


def rounded(stored: StoredModel, kind: TensorType) -> StoredModel:
    arrays = {
        name: proof._round_trip(array, kind, name) if array.ndim == 2 else array
        for name, array in stored.arrays.items()
    }
    return dataclasses.replace(stored, arrays=arrays)


def test_digests_do_not_depend_on_the_memory_order() -> None:
    arrays = stored_model().arrays
    turned = {name: np.asfortranarray(array) for name, array in arrays.items()}
    expected = proof.digests(arrays, kinds(TANH, F32))
    found = proof.check_digests(expected, turned, F32)
    assert (found.n_exact, found.n_rounded, found.wrong) == (len(arrays), 0, ())


def test_one_changed_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "CHUNK_BYTES", 500)  # several chunks per matrix
    arrays = dict(stored_model().arrays)
    expected = proof.digests(arrays, kinds(TANH, F32))
    arrays["h.1.mlp.c_fc.weight"] = arrays["h.1.mlp.c_fc.weight"].copy()
    arrays["h.1.mlp.c_fc.weight"].view(np.uint32)[100, 7] ^= 1
    del arrays["ln_f.bias"]
    assert proof.check_digests(expected, arrays, F32).wrong == ("h.1.mlp.c_fc.weight", "ln_f.bias")


@pytest.mark.parametrize("kind", [F16, BF16])
def test_rounding_is_told_from_damage(kind: TensorType) -> None:
    stored = stored_model()
    expected = proof.digests(stored.arrays, {**kinds(TANH, kind), "wpe.weight": (F32,)})
    back = {name: proof._round_trip(np.atleast_2d(a), kind, name) for name, a in stored.arrays.items()}
    back["wpe.weight"] = stored.arrays["wpe.weight"]
    found = proof.check_digests(expected, back, kind)
    assert (found.n_exact, found.n_rounded, found.wrong) == (1, len(back) - 1, ())
    assert found.rounding == kind.name.lower()
    back["wte.weight"] = back["wte.weight"] * np.float32(1.001)
    assert proof.check_digests(expected, back, kind).wrong == ("wte.weight",)


@pytest.mark.parametrize("kind", [F16, BF16, Q8_0, Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("std", [0.02, 0.1, 0.3])
def test_the_bound_on_rounded_weights_holds_and_is_not_idle(kind: TensorType, std: float) -> None:
    """Below the bound, and over it when the noise is that of the next coarser kind."""
    stored = stored_model(std=std)
    a = proof.answers_of(stored, "a", PROMPTS)
    found = compare(a, proof.answers_of(rounded(stored, kind), "b", PROMPTS))
    assert proof.rounding_bounds(kind, TANH, found).misses(found) == []
    if kind is F16:  # bfloat16 has 8 times the noise, 64 times the KL
        coarse = compare(a, proof.answers_of(rounded(stored, BF16), "b", PROMPTS))
        assert proof.rounding_bounds(F16, TANH, coarse).misses(coarse)


def test_bounds_of_float32_and_of_the_user() -> None:
    a = proof.answers_of(stored_model(), "a", PROMPTS)
    found = compare(a, a)
    assert proof.rounding_bounds(F32, TANH, found, max_kl=1.0) is proof.EXACT
    assert proof.rounding_bounds(Q4_0, TANH, found, max_kl=1.0).mean_kl == 1.0
    with pytest.raises(ConfigError, match="max_kl = -1"):
        proof.asked_for(-1.0)


def test_folded_mup_answers_the_same() -> None:
    stored = stored_model(MUP)
    a, b = (proof.answers_of(s, "x", PROMPTS) for s in (stored, fold(stored)))
    assert proof.EXACT.misses(compare(a, b)) == []


def test_configs_are_the_same_in_what_is_computed() -> None:
    same = dataclasses.replace(TANH, init_std=0.5, layer_norm_eps=float(np.float32(1e-5)))
    assert proof.config_problems(TANH, same) == []
    other = dataclasses.replace(TANH, layer_norm_eps=1e-6, n_heads=4)
    assert proof.config_problems(TANH, other) == [
        "n_heads is 4, was 2",
        "layer_norm_eps is 1e-06, was 1e-05",
    ]


def test_tokenizers_are_the_same_in_what_they_encode() -> None:
    one = stored_model().tokenizer
    assert one is not None
    assert proof.tokenizer_problems(one, Tokenizer.from_bytes(one.to_bytes())) == []
    assert proof.tokenizer_problems(None, None) == []
    assert proof.tokenizer_problems(one, None) == ["only one of the two has a tokenizer"]
    larger = Tokenizer.train(["something of another kind, kind of"] * 3, 261)
    assert "260 and 261 entries" in proof.tokenizer_problems(one, larger)[0]
    other = Tokenizer.train(["def mean(values): values values"] * 3, 260)
    assert proof.tokenizer_problems(one, other) == ["the tokenizers split the battery's texts differently"]


def test_versions_name_what_took_part() -> None:
    assert set(proof.versions("gguf")) == {"python", "wafergpt", "numpy", "torch", "gguf"}
