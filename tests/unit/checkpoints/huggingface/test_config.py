"""config.json: what is obeyed, noted and refused, against Transformers' own list of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wafergpt.checkpoints.huggingface.config import MissingScale, from_hf, to_hf
from wafergpt.checkpoints.huggingface.keys import known_keys
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.model import family
from wafergpt.model.config import Activation, GPTConfig
from wafergpt.model.mup import multipliers

# The keys of the published 2.7B file, which is minimal, with a small model's numbers.
MINIMAL: dict[str, Any] = {
    "activation_function": "gelu",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 48,
    "n_head": 4,
    "n_inner": 192,
    "n_layer": 2,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "vocab_size": 97,
}
SMALL = GPTConfig(d_model=48, n_layers=2, n_heads=4, vocab_size=97, max_seq_len=64)


def btlm(d_model: int, n_layer: int, n_head: int, **mup: Any) -> dict[str, Any]:
    """A muP Cerebras-GPT's config: GPT-2's keys with those of the BTLM class."""
    shape = {"n_embd": d_model, "n_layer": n_layer, "n_head": n_head, "n_inner": 4 * d_model}
    extra = {
        "model_type": "btlm",
        "position_embedding_type": "learned",
        "alibi_scaling": None,
        "use_cache": True,
    }
    return MINIMAL | shape | {"n_positions": 2048, "vocab_size": 50257} | extra | mup


MUP_256M = {
    "mup_width_scale": 0.23529411764705882,
    "mup_output_alpha": 1.0,
    "mup_embeddings_scale": 10,
    "mup_scale_qk_dot_by_d": True,
}
MUP_111M = {"mup_embeddings_scale": 10, "mup_scale_qk_dot_by_d": True}  # as published: no logit scale


def test_minimal_config() -> None:
    assert from_hf(MINIMAL) == (SMALL, ())


def test_what_a_config_leaves_out_is_gpt2s_default() -> None:
    config, notes = from_hf({"model_type": "gpt2"})
    assert config == replace(family.get("gpt2").config) and notes == ()


@pytest.mark.parametrize("name", ["gpt2", "111M", "13B"])
def test_written_and_read_again(name: str) -> None:
    config = family.get(name).config
    assert from_hf(to_hf(config, end_of_text_id=50256)) == (config, ())


def test_every_key_of_transformers_config_is_known() -> None:
    transformers = pytest.importorskip("transformers")
    written = transformers.GPT2Config(id2label={0: "a", 1: "b"}).to_dict()
    assert set(written) - {"_attn_implementation_internal"} <= known_keys("gpt2")
    config, notes = from_hf(written)
    assert config == family.get("gpt2").config
    assert any("dropout" in note for note in notes)  # 0.1 everywhere by default


def test_keys_of_the_first_gpt2_configs() -> None:
    """As openai-community/gpt2-medium, gpt2-xl and distilgpt2 still have them."""
    old = {
        "n_ctx": 64, "n_special": 0, "predict_special_tokens": True, "output_past": True, "_num_labels": 1,
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip
    assert from_hf(MINIMAL | old) == (SMALL, ())


def test_aliases_are_read_and_must_agree() -> None:
    renamed = {k: v for k, v in MINIMAL.items() if k not in ("n_embd", "n_positions")}
    assert from_hf(renamed | {"hidden_size": 48, "n_ctx": 64})[0] == SMALL
    with pytest.raises(CheckpointError, match=r"config.json: n_ctx = 32 and n_positions = 64 contradict"):
        from_hf(MINIMAL | {"n_ctx": 32})


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("gelu", Activation.GELU),
        ("gelu_new", Activation.GELU_TANH),
        ("gelu_pytorch_tanh", Activation.GELU_TANH),
    ],
)
def test_activations(name: str, ours: Activation) -> None:
    assert from_hf(MINIMAL | {"activation_function": name})[0].activation is ours


REFUSED = {
    "relu": ({"activation_function": "relu"}, "activation_function = 'relu'"),
    "unknown key": ({"n_layers": 2}, "unknown key 'n_layers'; did you mean 'n_layer'"),
    "layer scale": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    "unscaled attention": ({"scale_attn_weights": False}, "scale_attn_weights"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "code": ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "trust": ({"trust_remote_code": True}, "trust_remote_code"),
    "implementation": ({"_attn_implementation_internal": "x/y"}, "_attn_implementation_internal"),
    "classifier": ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures"),
    "other family": ({"model_type": "llama"}, "model_type is 'llama'"),
    "no family": ({"model_type": None}, "model_type is None"),
    "text for a number": ({"n_embd": "48"}, "n_embd = '48'"),
    "fraction": ({"n_embd": 48.0}, "n_embd = 48.0"),
    "bool": ({"n_layer": True}, "n_layer = True"),
    "negative": ({"n_head": -4}, "n_head = -4"),
    "huge vocabulary": ({"vocab_size": 2**40}, "vocab_size"),
    "huge depth": ({"n_layer": 10**9}, "n_layer"),
    "huge number": ({"n_layer": 10**4000}, "n_layer"),
    "heads": ({"n_head": 5}, "d_model = 48 is not divisible by n_heads = 5"),
    "nan": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    "infinite": ({"initializer_range": float("inf")}, "initializer_range"),
    "mup in gpt2": ({"mup_width_scale": 0.5}, "mup_width_scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_file_and_key(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(CheckpointError) as refused:
        from_hf(MINIMAL | change)
    line = str(refused.value)
    assert line.startswith("config.json: ") and message in line and "\n" not in line and len(line) < 400


def test_what_has_no_effect_is_noted() -> None:
    document = MINIMAL | {
        "attn_pdrop": 0.1,
        "reorder_and_upcast_attn": True,
        "temperature": 0.7,
        "eos_token_id": 97,
    }
    notes = from_hf(document)[1]
    for word in ("attn_pdrop = 0.1", "reorder_and_upcast_attn", "temperature", "eos_token_id = 97"):
        assert sum(word in note for note in notes) == 1, word


@pytest.mark.parametrize(
    ("size", "width"),
    [("256M", 0.23529411764705882), ("590M", 0.16666666666666666), ("1.3B", 0.125), ("2.7B", 0.1)],
)
def test_published_mup_configs_are_the_family_members(size: str, width: float) -> None:
    member = family.get(f"{size}-muP").config
    document = btlm(member.d_model, member.n_layers, member.n_heads, **MUP_256M | {"mup_width_scale": width})
    config, notes = from_hf(document | {"initializer_range": 0.08, "auto_map": {"AutoConfig": "x--y.Z"}})
    assert config == member
    assert any("auto_map not followed" in note for note in notes)


def test_111m_mup_needs_a_choice() -> None:
    document = btlm(768, 10, 12, **MUP_111M)
    with pytest.raises(
        CheckpointError, match=r"mup_width_scale.*literally it is 1, .*0\.33.*mup_logit_scale="
    ):
        from_hf(document)
    recipe, notes = from_hf(document, mup_logit_scale="recipe")
    assert multipliers(recipe).logits == 1 / 3 and "recipe" in notes[-1]
    assert replace(recipe, init_std=0.08) == family.get("111M-muP").config
    literal, notes = from_hf(document, mup_logit_scale=MissingScale.CONFIG)
    assert multipliers(literal).logits == 1.0 and "config" in notes[-1]
    assert multipliers(literal).embedding == 10 and multipliers(literal).attention_scale == 1 / 64


def test_a_scale_that_both_readings_agree_on_needs_none() -> None:
    assert multipliers(from_hf(btlm(256, 24, 4, **MUP_111M))[0]).logits == 1.0  # the 40M proxy: width ratio 1


def test_a_choice_where_nothing_is_missing_is_refused() -> None:
    with pytest.raises(ConfigError, match="not needed"):
        from_hf(btlm(1088, 14, 17, **MUP_256M), mup_logit_scale="config")
    with pytest.raises(ConfigError, match="is standard"):
        from_hf(MINIMAL, mup_logit_scale="config")
    with pytest.raises(ConfigError, match="'guess'"):
        from_hf(btlm(768, 10, 12, **MUP_111M), mup_logit_scale="guess")


def test_older_mup_names() -> None:
    old = {
        "embeddings_scale": 10,
        "output_logits_scale": 1.0,
        "width_scale": 0.125,
        "scale_qk_dot_by_d": True,
    }
    assert multipliers(from_hf(btlm(2048, 24, 16, **old))[0]).logits == 0.125


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mup_scale_qk_dot_by_d": False}, "1/d_head"),
        ({"mup_scale_qk_dot_by_d": "yes"}, "not true or false"),
        ({"mup_embeddings_scale": 0}, "mup_embeddings_scale"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type = 'alibi'"),
        ({"activation_function": "swiglu"}, "activation_function = 'swiglu'"),
        ({"activation_function": None}, "activation_function"),
        ({"embeddings_scale": 14.6}, "two names of one thing"),
    ],
)
def test_btlm_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_hf(btlm(1088, 14, 17, **MUP_256M) | change)


def test_a_btlm_config_without_mup_is_standard() -> None:
    config, _ = from_hf(btlm(768, 10, 12))
    assert config == family.get("111M").config


def test_mup_has_no_stock_config() -> None:
    with pytest.raises(ConfigError, match="fold"):
        to_hf(family.get("111M-muP").config)
