"""One table per parametrisation: role of a parameter -> how it is initialised and updated (no torch).

`init` draws from `ParameterRule.init_mean/init_std`, the optimiser multiplies the learning rate by
`lr_scale` and decays where `weight_decay` says so, the forward pass applies `Multipliers`. Nothing
else in the package knows which parametrisation is in use.

Source of the rules: Model Zoo 1.9.1 gpt3/README.md and gpt2_model.py; initialisers of
Cerebras_GPT/*.yaml; decay exclusions of common/optim_utils.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, MuPConfig

# Weights come from a normal cut at mean +- 2 sigma; the variance is not corrected for the cut
# (torch's trunc_normal_, the "a" and "b" of Cerebras_GPT/*.yaml).
TRUNCATION_SIGMAS = 2.0


class Role(StrEnum):
    """What a parameter does; two parameters of one role obey one rule."""

    EMBEDDING = "embedding"  # wte (also the tied head), wpe
    HIDDEN_IN = "hidden_in"  # attn.c_attn, mlp.c_fc: read the residual stream
    ATTENTION_OUT = "attention_out"  # attn.c_proj: writes to the residual stream
    FFN_OUT = "ffn_out"  # mlp.c_proj: writes to the residual stream
    NORM = "norm"  # LayerNorm weights
    BIAS = "bias"  # every bias, LayerNorm's too


_ROLE_OF_MODULE = {
    "wte": Role.EMBEDDING,
    "wpe": Role.EMBEDDING,
    "h.N.ln_1": Role.NORM,
    "h.N.attn.c_attn": Role.HIDDEN_IN,
    "h.N.attn.c_proj": Role.ATTENTION_OUT,
    "h.N.ln_2": Role.NORM,
    "h.N.mlp.c_fc": Role.HIDDEN_IN,
    "h.N.mlp.c_proj": Role.FFN_OUT,
    "ln_f": Role.NORM,
}


def role_of(parameter_name: str) -> Role:
    """The role of `wte.weight`, `h.3.attn.c_proj.bias`, ... Raises ConfigError for any other name."""
    module, _, kind = parameter_name.rpartition(".")
    role = _ROLE_OF_MODULE.get(re.sub(r"^h\.[0-9]+\.", "h.N.", module))
    if role is not None and kind == "weight":
        return role
    if role not in (None, Role.EMBEDDING) and kind == "bias":
        return Role.BIAS
    raise ConfigError(f"'{parameter_name}' is not the name of a GPT parameter")


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """Initialisation (truncated normal; std 0 means the constant `init_mean`) and update of one role."""

    init_std: float
    lr_scale: float  # the group's learning rate is the schedule's times this
    weight_decay: bool  # decoupled decay, itself multiplied by the scaled learning rate
    init_mean: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Constants of the forward pass."""

    embedding: float  # on token + position embeddings
    attention_scale: float  # on q k^T
    logits: float  # on the tied head's output


@dataclass(frozen=True, kw_only=True)
class WidthRatios:
    """How much wider than the base model: m = D / base D and m_ffn = F / base F (1 under standard)."""

    d_model: float
    d_ffn: float


def width_ratios(config: GPTConfig) -> WidthRatios:
    """The two ratios the muP rules divide by; both 1 under the standard parametrisation."""
    if config.mup is None:
        return WidthRatios(d_model=1.0, d_ffn=1.0)
    return WidthRatios(
        d_model=config.d_model / config.mup.base_d_model, d_ffn=config.ffn_width / config.mup.base_d_ffn
    )


def rules(config: GPTConfig) -> dict[Role, ParameterRule]:
    """The table of `config`'s parametrisation, one rule per role."""
    return _standard_rules(config) if config.mup is None else _mup_rules(config)


def _standard_rules(config: GPTConfig) -> dict[Role, ParameterRule]:
    std = config.base_init_std
    # 0.02 / sqrt(2 L): the paper's formula, and GPT-2's. The shipped YAMLs of 1.3B and 13B hold 0.0025
    # instead (exact for 32 layers only); we follow the formula.
    out_std = std / math.sqrt(2 * config.n_layers)
    return {
        Role.EMBEDDING: ParameterRule(init_std=std, lr_scale=1.0, weight_decay=True),
        Role.HIDDEN_IN: ParameterRule(init_std=std, lr_scale=1.0, weight_decay=True),
        Role.ATTENTION_OUT: ParameterRule(init_std=out_std, lr_scale=1.0, weight_decay=True),
        Role.FFN_OUT: ParameterRule(init_std=out_std, lr_scale=1.0, weight_decay=True),
        Role.NORM: ParameterRule(init_mean=1.0, init_std=0.0, lr_scale=1.0, weight_decay=False),
        Role.BIAS: ParameterRule(init_std=0.0, lr_scale=1.0, weight_decay=False),
    }


def _mup_rules(config: GPTConfig) -> dict[Role, ParameterRule]:
    std, ratios = config.base_init_std, width_ratios(config)
    m, m_ffn, depth = ratios.d_model, ratios.d_ffn, 2 * config.n_layers
    in_std = std / math.sqrt(m)
    attention_std, ffn_std = std / math.sqrt(depth * m), std / math.sqrt(depth * m_ffn)
    return {
        Role.EMBEDDING: ParameterRule(init_std=std, lr_scale=1.0, weight_decay=True),
        Role.HIDDEN_IN: ParameterRule(init_std=in_std, lr_scale=1 / m, weight_decay=True),
        Role.ATTENTION_OUT: ParameterRule(init_std=attention_std, lr_scale=1 / m, weight_decay=True),
        Role.FFN_OUT: ParameterRule(init_std=ffn_std, lr_scale=1 / m_ffn, weight_decay=True),
        Role.NORM: ParameterRule(init_mean=1.0, init_std=0.0, lr_scale=1.0, weight_decay=False),
        Role.BIAS: ParameterRule(init_std=0.0, lr_scale=1.0, weight_decay=False),
    }


def multipliers(config: GPTConfig) -> Multipliers:
    """The forward pass's constants: all plain under standard, 1/d_head attention under muP."""
    if config.mup is None:
        return Multipliers(embedding=1.0, attention_scale=1.0 / math.sqrt(config.d_head), logits=1.0)
    mup: MuPConfig = config.mup
    return Multipliers(
        embedding=mup.embedding_multiplier,
        attention_scale=1.0 / config.d_head,
        logits=mup.output_multiplier / width_ratios(config).d_model,
    )
