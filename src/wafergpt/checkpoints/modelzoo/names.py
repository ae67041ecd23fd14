"""Parameter names of Model Zoo checkpoints <-> ours, over all releases.

Source: Model Zoo tools/checkpoint_converters/gpt2_hf_cs.py (Release_1.9.1 to 2.10.0).
"""

from __future__ import annotations

import re

_MODULES = {
    "wte": "embedding_layer.word_embeddings",
    "wpe": "embedding_layer.position_embeddings.embed",
    "ln_f": "transformer_decoder.norm",
}
_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm3",  # norm2 is the cross-attention's, which a decoder alone does not have
    "attn.c_proj": "self_attn.proj_output_dense_layer",
    "mlp.c_fc": "ffn.ffn.0.linear_layer",
    "mlp.c_proj": "ffn.ffn.1.linear_layer",
}
QKV = tuple(f"self_attn.proj_{letter}_dense_layer" for letter in "qkv")  # c_attn's thirds, in this order
HEAD = "lm_head.weight"
# What a release called it -> what the current one does.
_ALIASES = {
    # to 2.0
    "embedding_layer.position_embeddings.weight": "embedding_layer.position_embeddings.embed.weight",
    "ln_f.weight": "transformer_decoder.norm.weight",  # to 1.9, beside it
    "ln_f.bias": "transformer_decoder.norm.bias",
}
_LAYER = re.compile(r"transformer_decoder\.layers\.(\d+)\.")
_MAX_LAYERS = 10_000


def zoo_names(name: str) -> tuple[str, ...]:
    """Where our parameter `name` lies: one current Zoo name, or three for q, k and v."""
    module, _, kind = name.rpartition(".")
    if module in _MODULES:
        return (f"{_MODULES[module]}.{kind}",)
    _, layer, part = module.split(".", 2)
    prefix = f"transformer_decoder.layers.{layer}."
    if part == "attn.c_attn":
        return tuple(f"{prefix}{third}.{kind}" for third in QKV)
    return (f"{prefix}{_BLOCK[part]}.{kind}",)


def current_name(name: str) -> str:
    """The current name of a model key: `model.` prefixes off, an older release's name replaced."""
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return _ALIASES.get(name, name)


def count_layers(names: list[str]) -> int:
    """Blocks among current names: one above the highest number."""
    numbers = [int(match[1]) for name in names if (match := _LAYER.match(name)) and len(match[1]) < 6]
    return min(max(numbers, default=-1) + 1, _MAX_LAYERS)
