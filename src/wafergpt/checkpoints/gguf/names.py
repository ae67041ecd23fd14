"""Our parameter names <-> llama.cpp's tensor names for GPT-2 (its src/llama-arch.cpp, LLM_ARCH_GPT2)."""

from __future__ import annotations

from wafergpt.model.config import GPTConfig

_TOP = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
TOKEN_EMBEDDING = "token_embd.weight"
POSITION_EMBEDDING = "position_embd.weight"
HEAD = "output.weight"  # absent when tied, which is how we write it


def tensor_name(ours: str) -> str:
    """`h.3.attn.c_attn.weight` -> `blk.3.attn_qkv.weight`."""
    module, _, kind = ours.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    _, layer, inner = module.split(".", 2)
    return f"blk.{layer}.{_BLOCK[inner]}.{kind}"


def tensor_names(config: GPTConfig) -> dict[str, str]:
    """llama.cpp's name -> ours, for every parameter, in the model's order."""
    return {tensor_name(ours): ours for ours in config.parameter_shapes()}
