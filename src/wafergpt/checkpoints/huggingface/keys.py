"""Every key a config.json of this family may hold, and what becomes of it: one closed table.

Sources: Transformers' GPT2Config and PreTrainedConfig (4.x and 5.23), the BTLM class of
huggingface.co/cerebras/btlm-3b-8k-base (its muP names were changed in commit eb4f0e4; both are read).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Another name -> GPT-2's (GPT2Config.attribute_map; n_ctx is the name before Transformers 4).
ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}

# GPT2Config's defaults, which a minimal config relies on.
SHAPE_DEFAULTS = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}

# What we would still believe. 13B, the largest of the family, has 40 layers of width 5120 and 40 heads; a lie
# beyond these would cost memory before the weights could contradict it.
LARGEST = {
    "vocab_size": 1 << 24,
    "n_positions": 1 << 24,
    "n_embd": 1 << 17,
    "n_layer": 1 << 12,
    "n_head": 1 << 12,
    "n_inner": 1 << 20,
}


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A key that would change the computation: the values that leave it as it is, and why no others."""

    allowed: tuple[Any, ...]
    why: str


_OFF = (False, None)
FIXED = {
    "scale_attn_weights": Fixed(allowed=(True,), why="attention is always scaled"),
    "scale_attn_by_inverse_layer_idx": Fixed(allowed=_OFF, why="no layer scales its attention apart"),
    "add_cross_attention": Fixed(allowed=_OFF, why="there is no encoder to attend to"),
    "is_encoder_decoder": Fixed(allowed=_OFF, why="the family is decoder-only"),
    "tie_word_embeddings": Fixed(allowed=(True,), why="the head is the token embedding"),
    "pruned_heads": Fixed(allowed=({}, None), why="heads are not pruned"),
    "quantization_config": Fixed(allowed=(None,), why="weights are read as floating-point numbers"),
    "n_special": Fixed(allowed=(0, None), why="special tokens are entries like any other"),
    "per_layer_config": Fixed(allowed=(None,), why="all layers are alike"),
    "position_embedding_type": Fixed(allowed=("learned",), why="positions are learned embeddings"),
    "alibi_scaling": Fixed(allowed=(None,), why="positions are learned embeddings"),
}
_BTLM_FIXED = ("position_embedding_type", "alibi_scaling")

# Ours -> the names it had, newest first.
MUP_NAMES = {
    "embedding": ("mup_embeddings_scale", "embeddings_scale"),
    "alpha": ("mup_output_alpha", "output_logits_scale"),
    "width": ("mup_width_scale", "width_scale"),
    "by_d": ("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d"),
}

_OBEYED = {
    *SHAPE_DEFAULTS,
    "n_inner",
    "activation_function",
    "layer_norm_epsilon",
    "initializer_range",
    "model_type",
    "architectures",
}

# No effect on the logits of a forward pass. Those under "dropout" are noted when they are not zero.
HARMLESS: dict[str, tuple[str, ...]] = {
    "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"),
    "summary head, which a language model has not": (
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
    ),
    "numerics in half precision": ("reorder_and_upcast_attn",),
    "special tokens, which the tokenizer decides": (
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
        "decoder_start_token_id", "tokenizer_class", "prefix",
    ),
    "storage: each tensor says its own type": ("dtype", "torch_dtype"),
    "what a call returns": (
        "use_cache", "output_past", "output_hidden_states", "output_attentions", "return_dict",
        "use_return_dict",
    ),
    "labels of a classifier": (
        "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task",
    ),
    "book-keeping": (
        "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "task_specific_params",
        "gradient_checkpointing", "chunk_size_feed_forward", "torchscript", "use_bfloat16", "tf_legacy_loss",
        "is_decoder", "predict_special_tokens", "cross_attention_hidden_size", "tie_encoder_decoder",
        "_attn_implementation_autoset",
    ),
}  # fmt: skip

# transformers.GenerationConfig; old versions stored them here.
GENERATION_KEYS = frozenset(
    {
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values",
        "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p",
        "typical_p",
    }
)  # fmt: skip


def known_keys(dialect: str) -> frozenset[str]:
    """Every key read in a config of model_type `gpt2` or `btlm`; `auto_map` and muP only in the second."""
    btlm = {*_BTLM_FIXED, "auto_map", *(name for names in MUP_NAMES.values() for name in names)}
    known = {*_OBEYED, *FIXED, *GENERATION_KEYS, *(key for group in HARMLESS.values() for key in group)}
    return frozenset(known | btlm if dialect == "btlm" else known - btlm)
