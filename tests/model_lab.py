"""Small stored models with nothing left at a symmetric or zero value, for tests of formats."""

from __future__ import annotations

import dataclasses

import numpy as np

from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.tokenizer.bpe import Tokenizer

STANDARD = GPTConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=261, max_seq_len=24)
TANH = dataclasses.replace(STANDARD, activation=Activation.GELU_TANH)
MUP = dataclasses.replace(
    STANDARD,
    parametrization=Parametrization.MUP,
    mup=MuPConfig(base_d_model=16, base_d_ffn=64, embedding_multiplier=3.0, output_multiplier=1.5),
    init_std=None,
)


def stored_model(config: GPTConfig = TANH, seed: int = 0, std: float = 0.1) -> StoredModel:
    """Normal weights of `std`, LayerNorms around one, biases not zero, a byte tokenizer, a chat template."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in config.parameter_shapes().items():
        centre = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        arrays[name] = random.normal(centre, std, shape).astype(np.float32)
    tokenizer = Tokenizer.train(["the weather and the whether of the matter"] * 3, 260)
    return StoredModel(
        config=config,
        arrays=arrays,
        tokenizer=tokenizer,
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
        provenance={"name": "small"},
    )
