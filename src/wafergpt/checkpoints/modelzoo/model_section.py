"""The `model` section of a Model Zoo configuration <-> `GPTConfig`, old and new keys.

Every key of the Zoo's GPT-2/GPT-3 model class is either obeyed, or of no effect on this architecture, or
refused by name. Source of keys, defaults and muP scaling: Model Zoo gpt2/gpt2_model.py and gpt2/config.py
(Release_1.9.1 to 2.10.0), gpt3/configs/Cerebras_GPT/*.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from wafergpt.checkpoints.modelzoo.section import Section
from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.mup import TRUNCATION_SIGMAS, Role, rules

# Values that mean the architecture of `model.gpt`; any other would be another model.
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("learned",),
    "use_position_embedding": (True,),
    "position_embedding_offset": (0,),
    "constant_pos_embedding": (None,),
    "share_embedding_weights": (True,),
    "embedding_layer_norm": (False,),
    "num_extra_input_vocab_tokens": (0,),
    "norm_type": ("layernorm",),
    "norm_first_sandwich": (False,),
    "attention_type": ("scaled_dot_product",),
    "attention_module": ("aiayn_attention",),
    "attention_inner_dim": (None,),
    "use_projection_bias_in_attention": (True,),
    "use_ffn_bias_in_attention": (True,),
    "use_ffn_bias": (True,),
    "use_bias_in_output": (False,),
    "scale_qk_dot_by_layer_idx": (False,),
    "attention_sliding_window_length": (None,),
    "sliding_window_every_other_decoder_layer": (False,),
    "attention_sink_tokens": (None,),
    "attention_vertical_column_spacing": (None,),
    "attention_vertical_column_width": (None,),
    "attention_chunk_size": (None,),
    "attention_qk_norm_layer": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "fixed_sparse_attention": (None,),
    "memory_tokens": (None, {}),
    "cross_attention_layers": ([], None),
    "extra_attention_params": ({}, None),
    "extra_ffn_params": ({}, None),
    "moe": (None, {}, {"num_experts": 1}),
    "moe_params": (None, {}, {"num_experts": 1}),
    "attention_logits_alpha": (1.0, None),
    "scale_output_logits_by_d": (True, None),
    "lr_adjustment_groups": (None,),
}
# Read by the Zoo for other position embeddings, for inference or for the compiler; without effect here.
_NO_EFFECT = (
    "num_relative_attention_buckets",
    "rotary_dim",
    "rope_theta",
    "pad_rope",
    "fold_rope_consts",
    "alibi_trainable_slopes",
    "pos_scaling_factor",
    "pos_scaling_type",
    "pos_scaling_extra_args",
    "rel_distance_mode",
    "rel_distance_extra_args",
    "attention_qk_norm_eps",
    "attention_kernel",
    "use_experimental_flex_api",
    "boundary_casting",
    "compute_eval_metrics",
    "start_token",
    "stop_sequences",
    "loop_dim",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "dtype",
)
_ACTIVATIONS = {"gelu": Activation.GELU, "gelu_new": Activation.GELU_TANH}  # layers/activations.py
_MODEL_NAMES = ("gpt3", "gpt2", "GPT2LMHeadModel")
_DEFAULT_DROPOUT = 0.1  # the class's default: leaving the key out is not the same as 0
_DEFAULT_STD = 0.02  # initializer_range
_PUBLISHED_MUP_STD = 0.08  # tuned on the 40M proxy: gpt3/configs/muP/params_gpt3_40M.yaml
_SAME = 1e-6  # relative; the YAMLs print 7 to 16 digits


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """What a `model` section says. `dropout` is the largest of its rates."""

    config: GPTConfig
    dropout: float
    loss_scaling: str
    loss_weight: float


@dataclass(frozen=True, kw_only=True)
class _Stds:
    """Standard deviations of the truncated normals; None where the file leaves one out."""

    embedding: float | None
    hidden: float | None
    output: float | None
    ffn_output: float | None


def read_model(section: Section, kernel_lr_scale: float | None = None) -> ZooModel:
    """Obey or refuse every key. `kernel_lr_scale` is the old `adjust_learning_rate.decoder_kernel`.

    Raises ConfigError naming the key.
    """
    if "name" in section:
        section.only("name", *_MODEL_NAMES)
    for key, allowed in _FIXED.items():
        section.only(key, *allowed)
    section.ignore(_NO_EFFECT)
    if not section.take("attention_softmax_fp32", True):
        section.note(
            "attention_softmax_fp32 = false: attention's softmax is computed in float32 all the same"
        )
    activation = section.take("nonlinearity", "gelu")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ConfigError(f"{section.path('nonlinearity')} = {activation!r} is not one of {known}")
    stds = _read_stds(section)
    mup = _read_mup(section, kernel_lr_scale)
    draft = GPTConfig(
        d_model=section.integer("hidden_size", minimum=1),
        n_layers=section.integer("num_hidden_layers", minimum=1),
        n_heads=section.integer("num_heads", minimum=1),
        d_ffn=section.integer("filter_size", minimum=1),
        vocab_size=section.integer("vocab_size", minimum=1),
        max_seq_len=section.integer("max_position_embeddings", minimum=1),
        activation=_ACTIVATIONS[activation],
        parametrization=Parametrization.STANDARD if mup is None else Parametrization.MUP,
        mup=mup,
        init_std=stds.embedding if stds.embedding is not None else _DEFAULT_STD,
        layer_norm_eps=section.number("layer_norm_epsilon", 1e-5),
    )
    config = _with_init(section, draft, stds)
    loss_scaling = section.text("loss_scaling", "num_tokens").lower()
    require(
        loss_scaling in ("num_tokens", "batch_size"),
        f"{section.path('loss_scaling')} = '{loss_scaling}' is not one of num_tokens, batch_size",
    )
    return ZooModel(
        config=config,
        dropout=_read_dropout(section),
        loss_scaling=loss_scaling,
        loss_weight=section.number("loss_weight", 1.0),
    )


def write_model(config: GPTConfig) -> dict[str, Any]:
    """The `model` section of the current release (2.3 and later) for `config`.

    Initialisers are the base values from which the Zoo derives each weight's under muP.
    """
    std = config.base_init_std
    out_std = std if config.mup else std / math.sqrt(2 * config.n_layers)
    names = {activation: name for name, activation in _ACTIVATIONS.items()}
    section: dict[str, Any] = {
        "name": "gpt3",
        "hidden_size": config.d_model,
        "position_embedding_type": "learned",
        "share_embedding_weights": True,
        "max_position_embeddings": config.max_seq_len,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.n_layers,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": config.layer_norm_eps,
        "num_heads": config.n_heads,
        "attention_type": "scaled_dot_product",
        "attention_dropout_rate": 0.0,
        "use_projection_bias_in_attention": True,
        "use_ffn_bias_in_attention": True,
        "filter_size": config.ffn_width,
        "nonlinearity": names[config.activation],
        "use_ffn_bias": True,
        "embedding_initializer": _initializer(std),
        "initializer": _initializer(std),
        "output_layer_initializer": _initializer(out_std),
        "loss_scaling": "num_tokens",
        "loss_weight": 1.0,
        "use_bias_in_output": False,
    }
    if config.mup is not None:
        section |= {
            "ffn_output_layer_initializer": _initializer(std),  # left out, the Zoo takes 0.02
            "mup_base_hidden_size": config.mup.base_d_model,
            "mup_base_filter_size": config.mup.base_d_ffn,
            "scale_qk_dot_by_d": True,
            "output_logits_alpha": config.mup.output_multiplier,
            "embeddings_scale": config.mup.embedding_multiplier,
        }
    return section


def _initializer(std: float) -> dict[str, Any]:
    bound = TRUNCATION_SIGMAS * std
    return {"name": "truncated_normal", "mean": 0.0, "std": std, "a": -bound, "b": bound}


# -- dropout, muP


def _read_dropout(section: Section) -> float:
    base = section.number("dropout_rate", _DEFAULT_DROPOUT)
    if "dropout_rate" not in section:
        section.note(f"{section.path('dropout_rate')} is left out, which the Model Zoo reads as {base}")
    rates = [base]
    for key in ("attention_dropout_rate", "embedding_dropout_rate"):
        if section.is_set(key):
            rates.append(section.number(key))
    return max(rates)


def _read_mup(section: Section, kernel_lr_scale: float | None) -> MuPConfig | None:
    """The muP block, from the base sizes (2.3 and later) or from the multipliers (before); None: standard."""
    new = [key for key in ("mup_base_hidden_size", "mup_base_filter_size") if section.is_set(key)]
    old_scale = section.number("output_logits_scale") if section.is_set("output_logits_scale") else None
    embedding = section.number("embeddings_scale") if section.is_set("embeddings_scale") else 1.0
    by_d = section.flag("scale_qk_dot_by_d") if section.is_set("scale_qk_dot_by_d") else None
    alpha = section.number("output_logits_alpha") if section.is_set("output_logits_alpha") else None
    if not new and old_scale is None and kernel_lr_scale is None:
        odd = {"embeddings_scale": embedding != 1.0, "scale_qk_dot_by_d": bool(by_d)}
        odd["output_logits_alpha"] = alpha not in (None, 1.0)
        for key, is_odd in odd.items():
            require(
                not is_odd, f"{section.path(key)} is a muP setting, but no muP base size or scale is given"
            )
        return None
    if by_d is None and new:
        section.note("scale_qk_dot_by_d is left out; under muP the Model Zoo reads that as true")
    elif not by_d:
        raise ConfigError(
            f"{section.path('scale_qk_dot_by_d')} must be true under muP: attention scaled by 1/sqrt(d_head)"
            " together with muP is not supported"
        )
    if new:
        require(
            len(new) == 2,
            f"{section.where}: mup_base_hidden_size and mup_base_filter_size are needed together",
        )
        require(
            old_scale is None,
            f"{section.path('output_logits_scale')} contradicts the muP base sizes of release 2.3",
        )
        return MuPConfig(
            base_d_model=section.integer("mup_base_hidden_size", minimum=1),
            base_d_ffn=section.integer("mup_base_filter_size", minimum=1),
            embedding_multiplier=embedding,
            output_multiplier=alpha or 1.0,
        )
    require(alpha is None, f"{section.path('output_logits_alpha')} needs the muP base sizes of release 2.3")
    return _old_mup(section, old_scale, embedding, kernel_lr_scale)


def _old_mup(
    section: Section, scale: float | None, embedding: float, kernel_lr_scale: float | None
) -> MuPConfig:
    """Base sizes from what was written before 2.3: logits times alpha / m, kernels' rate times 1 / m."""
    if scale is None:
        raise ConfigError(
            f"missing key '{section.path('output_logits_scale')}': kernels' rate is scaled by muP"
        )
    if kernel_lr_scale is None:
        section.note(
            "the muP width ratio is taken from output_logits_scale, assuming an output multiplier of 1:"
            " there is no optimizer.adjust_learning_rate.decoder_kernel to say so"
        )
    ratio = scale if kernel_lr_scale is None else kernel_lr_scale  # 1 / m
    require(ratio > 0, f"{section.where}: the muP scale {ratio!r} must be above zero")
    sizes = {}
    for key in ("hidden_size", "filter_size"):
        base = section.integer(key, minimum=1) * ratio
        if round(base) < 1 or abs(base - round(base)) > 1e-4:
            raise ConfigError(
                f"{section.path(key)} times the muP scale {ratio!r} is {base:.6g}, no whole base size"
            )
        sizes[key] = round(base)
    section.note(
        f"muP base sizes {sizes['hidden_size']} and {sizes['filter_size']} follow from the scale {ratio:.6g};"
        " releases before 2.3 do not write them down"
    )
    return MuPConfig(
        base_d_model=sizes["hidden_size"],
        base_d_ffn=sizes["filter_size"],
        embedding_multiplier=embedding,
        output_multiplier=float(f"{scale / ratio:.9g}"),
    )


# -- initialisers


def _read_stds(section: Section) -> _Stds:
    default = section.number("initializer_range", _DEFAULT_STD)
    if default != _DEFAULT_STD:
        raise ConfigError(
            f"{section.path('initializer_range')} = {default} is not supported; write the initialisers out"
        )
    hidden = _read_std(section, "initializer")
    ffn = _read_std(section, "ffn_initializer")
    require(
        ffn is None or (hidden is not None and math.isclose(ffn, hidden, rel_tol=_SAME)),
        f"{section.path('ffn_initializer')} differs from initializer, which is not supported",
    )
    return _Stds(
        embedding=_read_std(section, "embedding_initializer"),
        hidden=hidden,
        output=_read_std(section, "output_layer_initializer"),
        ffn_output=_read_std(section, "ffn_output_layer_initializer"),
    )


def _read_std(section: Section, key: str) -> float | None:
    if not section.is_set(key):
        return None
    part = section.section(key)
    part.only("name", "truncated_normal")
    part.only("mean", 0.0)
    std = part.number("std", 1.0)
    for bound, sign in (("a", -1.0), ("b", 1.0)):
        wanted = sign * TRUNCATION_SIGMAS * std
        # Without a and b the Zoo cuts at two sigma as well (layers/init.py).
        if part.is_set(bound) and not math.isclose(part.number(bound), wanted, rel_tol=1e-4):
            raise ConfigError(
                f"{part.path(bound)} = {part.number(bound)!r} is not supported; it must be {wanted:.6g},"
                f" {TRUNCATION_SIGMAS:g} times std"
            )
    part.finish()
    require(std > 0, f"{part.path('std')} = {std!r} must be above zero")
    return std


def _with_init(section: Section, draft: GPTConfig, stds: _Stds) -> GPTConfig:
    """`draft` with the one sigma that all weights' follow from; notes what in the file departs from it."""
    std = draft.base_init_std
    base_values = draft.mup is not None and section.is_set("mup_base_hidden_size")
    flat = stds.hidden is not None and math.isclose(stds.hidden, std, rel_tol=_SAME)
    wide = draft.mup is not None and draft.mup.base_d_model != draft.d_model
    if draft.mup is not None and not base_values and flat and wide:
        section.note(
            f"the initialisers ({std:g} for embeddings and matrices alike) are the standard ones, shipped by"
            f" mistake with the muP files of release 1.9.1; init_std = {_PUBLISHED_MUP_STD} is used, as in"
            f" later releases (--set model.init_std={std:g} keeps the file's)"
        )
        return replace(draft, init_std=_PUBLISHED_MUP_STD)
    table = rules(draft)
    wanted = {
        "initializer": (stds.hidden, std if base_values else table[Role.HIDDEN_IN].init_std),
        "output_layer_initializer": (stds.output, std if base_values else table[Role.ATTENTION_OUT].init_std),
        "ffn_output_layer_initializer": (
            stds.ffn_output,
            std if base_values else table[Role.FFN_OUT].init_std,
        ),
    }
    for key, (found, rule) in wanted.items():
        if found is not None and not math.isclose(found, rule, rel_tol=1e-4):
            section.note(
                f"{key} has std {found:g}; a fresh run here starts with {rule:g}, by the published rule"
            )
        elif found is None and (key == "initializer" or base_values) and not math.isclose(rule, _DEFAULT_STD):
            section.note(
                f"{key} is left out, which the Model Zoo reads as std {_DEFAULT_STD:g}; a fresh run here"
                f" starts with {rule:g}, by the published rule"
            )
    return draft
