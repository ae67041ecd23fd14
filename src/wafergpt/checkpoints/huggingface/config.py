"""config.json <-> `GPTConfig`: every key is obeyed, noted, or refused by name.

Two dialects: `gpt2` (Transformers' GPT2Config; defaults below are its) and `btlm`, the form in which the
muP Cerebras-GPT checkpoints were published (huggingface.co/cerebras/Cerebras-GPT-Intermediate). Nothing in
a config can name code to run: `auto_map` is never followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, NoReturn

from wafergpt.checkpoints.huggingface.keys import (
    ALIASES,
    FIXED,
    GENERATION_KEYS,
    HARMLESS,
    LARGEST,
    MUP_NAMES,
    SHAPE_DEFAULTS,
    known_keys,
)
from wafergpt.errors import CheckpointError, ConfigError, did_you_mean, shown
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization

FILE_NAME = "config.json"
# transformers.activations.ACT2FN: `gelu` is the exact form; `gelu_new` and `gelu_pytorch_tanh` are the same
# tanh formula, the second as one fused operation.
_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "BTLMLMHeadModel", "BTLMModel")
_END_OF_TEXT_ID = 50256  # GPT2Config's default bos and eos


class MissingScale(StrEnum):
    """What a muP config that leaves out its logit scale means.

    The published 111M-muP config does (Cerebras-GPT-Intermediate, CerebrasGPT-111_muP): read literally its
    logits are multiplied by 1, its training configuration says 256 / d_model = 1/3. Text cannot settle it.
    """

    CONFIG = "config"  # literally: the defaults of the BTLM class, 1 x 1
    RECIPE = "recipe"  # as trained: 256 / d_model (Model Zoo Cerebras_GPT/*_mup.yaml)


def from_hf(
    document: Mapping[str, Any], *, mup_logit_scale: MissingScale | str | None = None
) -> tuple[GPTConfig, tuple[str, ...]]:
    """The model that a config.json describes, and one note per thing that is dropped or assumed.

    `mup_logit_scale` says what a muP config means that lacks its logit scale; it is refused where nothing is
    missing. Raises CheckpointError naming the key: unknown, of a wrong type, out of range, or asking for
    another computation than this family's; ConfigError for a wrong `mup_logit_scale`.
    """
    reader = _Reader(document)
    dialect = reader.value("model_type", None)
    if dialect not in ("gpt2", "btlm"):
        reader.refuse(f"model_type is {shown(dialect)}; only 'gpt2' and 'btlm' (muP Cerebras-GPT) are read")
    notes = reader.check_keys(dialect)
    shape = {ours: reader.size(theirs) for ours, theirs in _SHAPE.items()}
    n_inner = reader.size("n_inner") if document.get("n_inner") is not None else None
    config = reader.build(
        **shape,
        d_ffn=n_inner,
        activation=reader.activation(dialect),
        layer_norm_eps=reader.number("layer_norm_epsilon", 1e-5),
        init_std=reader.number("initializer_range", 0.02),
    )
    if dialect == "btlm":
        config, found = _with_mup(reader, config, mup_logit_scale)
        notes += found
    elif mup_logit_scale is not None:
        raise ConfigError("mup_logit_scale is for muP checkpoints; this one is standard (model_type 'gpt2')")
    return config, tuple(notes + _special_id_notes(document, config))


def to_hf(config: GPTConfig, *, dtype: str = "float32", end_of_text_id: int | None = None) -> dict[str, Any]:
    """The config.json of a standard model, as Transformers 5 lays it out and 4.x reads it.

    `n_ctx` is for converters that ask for it (llama.cpp's); `torch_dtype` for Transformers before 4.56.
    `end_of_text_id` becomes bos and eos. Raises ConfigError for a muP model: stock GPT-2 has no place for
    its constants, so fold it first (`checkpoints.mup_fold`).
    """
    if config.mup is not None:
        raise ConfigError("a muP model has no stock GPT-2 config; fold it first (checkpoints.mup_fold)")
    return {
        "activation_function": "gelu" if config.activation is Activation.GELU else "gelu_new",
        "add_cross_attention": False,
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": end_of_text_id,
        "dtype": dtype,
        "embd_pdrop": 0.0,
        "eos_token_id": end_of_text_id,
        "initializer_range": config.base_init_std,
        "layer_norm_epsilon": config.layer_norm_eps,
        "model_type": "gpt2",
        "n_ctx": config.max_seq_len,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.ffn_width,
        "n_layer": config.n_layers,
        "n_positions": config.max_seq_len,
        "pad_token_id": None,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "summary_first_dropout": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


# Ours -> theirs.
_SHAPE = {
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "vocab_size": "vocab_size",
    "max_seq_len": "n_positions",
}


class _Reader:
    """Typed access to the document; every refusal names the file and the key."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = dict(document)
        for alias, name in ALIASES.items():
            if alias in self.document:
                value = self.document.pop(alias)
                other = self.document.setdefault(name, value)
                if other != value:
                    self.refuse(f"{alias} = {shown(value)} and {name} = {shown(other)} contradict each other")

    def refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{FILE_NAME}: {reason}")

    def value(self, name: str, default: Any) -> Any:
        return self.document.get(name, default)

    def size(self, name: str) -> int:
        """A whole number from 1 to the largest we would ever believe; GPT2Config's default when absent."""
        value = self.value(name, SHAPE_DEFAULTS.get(name))
        if type(value) is not int:
            self.refuse(f"{name} = {shown(value)} is not a whole number")
        if not 1 <= value <= LARGEST[name]:
            self.refuse(f"{name} = {shown(value)} is not in 1..{LARGEST[name]}")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """A finite positive number."""
        value = self.value(name, default)
        if type(value) not in (int, float) or not (0 < value < math.inf):
            self.refuse(f"{name} = {shown(value)} is not a number above zero")
        return float(value)

    def activation(self, dialect: str) -> Activation:
        """GPT-2's default is `gelu_new`; a BTLM config must say."""
        name = self.value("activation_function", "gelu_new" if dialect == "gpt2" else None)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            self.refuse(f"activation_function = {shown(name)}; read are {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def check_keys(self, dialect: str) -> list[str]:
        """Refuse unknown keys and other computations; note what has no effect here."""
        known = known_keys(dialect)
        for name, value in self.document.items():
            if name not in known:
                hint = did_you_mean(name, sorted(known)) if len(name) < 80 else ""
                self.refuse(f"unknown key {shown(name)}{hint}")
            if name in FIXED and value not in FIXED[name].allowed:
                self.refuse(f"{name} = {shown(value)} is not supported: {FIXED[name].why}")
        architectures = self.value("architectures", None) or []
        if not isinstance(architectures, list) or any(a not in _ARCHITECTURES for a in architectures):
            self.refuse(f"architectures = {shown(architectures)}; read are {', '.join(_ARCHITECTURES)}")
        return self._notes(dialect)

    def _notes(self, dialect: str) -> list[str]:
        notes = []
        dropouts = [f"{n} = {v}" for n in HARMLESS["dropout"] if (v := self.value(n, 0)) not in (0, None)]
        if dropouts:
            notes.append(f"{FILE_NAME}: {', '.join(dropouts)} dropped: this family trains without dropout")
        if self.value("reorder_and_upcast_attn", False):
            notes.append(f"{FILE_NAME}: reorder_and_upcast_attn dropped: it only concerns half precision")
        if self.value("auto_map", None) is not None:
            notes.append(f"{FILE_NAME}: auto_map not followed: no code is taken from a model folder")
        sampling = sorted(GENERATION_KEYS & self.document.keys())
        if sampling:
            notes.append(f"{FILE_NAME}: generation settings dropped ({', '.join(sampling)})")
        return notes

    def build(self, **fields: Any) -> GPTConfig:
        """`GPTConfig(**fields)`, its refusals as this file's."""
        try:
            return GPTConfig(**fields)
        except ConfigError as error:
            self.refuse(str(error))


def _with_mup(
    reader: _Reader, config: GPTConfig, missing: MissingScale | str | None
) -> tuple[GPTConfig, list[str]]:
    """`config` with a BTLM config's constants: logits x alpha x width, embeddings x e, scores / d_head."""
    present: dict[str, str] = {}
    for ours, names in MUP_NAMES.items():
        for name in names:
            if name in reader.document and present.setdefault(ours, name) != name:
                reader.refuse(f"{present[ours]} and {name} are two names of one thing; which one is meant?")

    def number(ours: str) -> float:  # every one of them is 1 when left out
        return reader.number(present[ours], 1.0) if ours in present else 1.0

    by_d = reader.value(present.get("by_d", "mup_scale_qk_dot_by_d"), False)
    if type(by_d) is not bool:
        reader.refuse(f"{present['by_d']} = {shown(by_d)} is not true or false")
    embedding, width, alpha = number("embedding"), number("width"), number("alpha")
    if not by_d:
        if (embedding, width, alpha) != (1.0, 1.0, 1.0):
            reader.refuse("embeddings or logits are scaled but attention is not by 1/d_head: not muP's rules")
        if missing is not None:
            raise ConfigError("mup_logit_scale is for muP checkpoints; this config has no muP constants")
        return config, []
    base_d_model = 256  # the proxy's width: Model Zoo gpt3/configs/muP/params_gpt3_40M.yaml
    recipe = base_d_model / config.d_model
    notes: list[str] = []
    if {"width", "alpha"} <= present.keys():
        if missing is not None:
            raise ConfigError(f"mup_logit_scale is not needed: {FILE_NAME} says {alpha * width:g}")
        scale = alpha * width
    else:
        scale, notes = _chosen(alpha * width, alpha * (width if "width" in present else recipe), missing)
    stated = width * config.d_model  # the base width that the config states, if it states one
    if "width" in present and round(stated) >= 1 and math.isclose(stated, round(stated), rel_tol=1e-9):
        base_d_model = round(stated)
    mup = MuPConfig(
        base_d_model=base_d_model,
        base_d_ffn=max(1, round(base_d_model * config.ffn_width / config.d_model)),
        embedding_multiplier=embedding,
        output_multiplier=_tidy(scale * config.d_model / base_d_model),
    )
    return replace(config, parametrization=Parametrization.MUP, mup=mup), notes


def _chosen(literal: float, recipe: float, missing: MissingScale | str | None) -> tuple[float, list[str]]:
    """The logit scale of a config that leaves it out, and the note that says who chose."""
    try:
        choice = None if missing is None else MissingScale(missing)
    except ValueError:
        raise ConfigError(f"mup_logit_scale = {missing!r} is not 'config' or 'recipe'") from None
    if math.isclose(literal, recipe, rel_tol=1e-9):
        return literal, []
    if choice is None:
        raise CheckpointError(
            f"{FILE_NAME}: the muP logit scale is missing (mup_width_scale, mup_output_alpha), and is not "
            f"guessed: read literally it is {literal:g}, the training recipe says {recipe:g}; choose with "
            "mup_logit_scale='config' or 'recipe', by the loss on known text"
        )
    scale = literal if choice is MissingScale.CONFIG else recipe
    return scale, [f"{FILE_NAME}: missing muP logit scale taken from the {choice}: {scale:g}"]


def _tidy(value: float) -> float:
    """A multiplier that is 1 but for the rounding of a published decimal fraction is 1."""
    return 1.0 if math.isclose(value, 1.0, rel_tol=1e-9) else value


def _special_id_notes(document: Mapping[str, Any], config: GPTConfig) -> list[str]:
    notes = []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = document.get(name)
        if value is not None and (type(value) is not int or not 0 <= value < config.vocab_size):
            notes.append(f"{FILE_NAME}: {name} = {shown(value)} is no id of this vocabulary; not used")
    return notes
