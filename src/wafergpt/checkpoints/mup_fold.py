"""A muP model rewritten, exactly, as a standard tied GPT-2 that any engine runs.

muP changes three constants of the forward pass (`model.mup.multipliers`): embeddings times e, attention
scores times 1/K where GPT-2 has 1/sqrt(K), logits times s. Each is a factor on an array next to it:

- `wte` and `wpe` times e. The head is tied to `wte`, so logits come out e times too large;
- `ln_f` weight and bias times s / e: what enters the head is smaller by that, and the logits are s times;
- the query third of `c_attn`, weight and bias, times sqrt(K) / K: a softmax sees the same scores.

The factors are real numbers, so equality is exact in mathematics and to one rounding per value in floating
point. Model Zoo's converter folds too (tools/checkpoint_converters/mup.py) but unties the head, which
doubles the embedding; with `ln_f` taking the factor it stays tied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.model.config import Parametrization
from wafergpt.model.mup import multipliers

_QUERY_HOLDER = re.compile(r"h\.[0-9]+\.attn\.c_attn\.(weight|bias)")


def fold(model: StoredModel) -> StoredModel:
    """The same function of token ids under the standard parametrisation; a standard one comes back as it is.

    Arrays are made one at a time, when asked for, in the dtype of the originals. What is lost is in the
    notes: the result computes the same, but muP's rules for training no longer describe it.
    """
    config = model.config
    if config.mup is None:
        return model
    constants = multipliers(config)
    query_factor = constants.attention_scale * math.sqrt(config.d_head)
    factors = {
        "wte.weight": constants.embedding,
        "wpe.weight": constants.embedding,
        "ln_f.weight": constants.logits / constants.embedding,
        "ln_f.bias": constants.logits / constants.embedding,
    }

    def maker(name: str) -> Callable[[], NDArray[np.float32]]:
        if name in factors:
            return lambda: model.arrays[name] * factors[name]
        if _QUERY_HOLDER.fullmatch(name):
            return lambda: _queries_scaled(model.arrays[name], config.d_model, query_factor)
        return lambda: model.arrays[name]

    note = (
        f"muP folded into the weights: embeddings x {constants.embedding:g}, final LayerNorm x "
        f"{constants.logits / constants.embedding:g}, queries x {query_factor:g}; to train on under muP, "
        "keep the unfolded checkpoint"
    )
    return replace(
        model,
        config=replace(config, parametrization=Parametrization.STANDARD, mup=None, init_std=None),
        arrays=LazyArrays({name: maker(name) for name in model.arrays}),
        notes=(*model.notes, note),
    )


def _queries_scaled(packed: NDArray[np.float32], d_model: int, factor: float) -> NDArray[np.float32]:
    """A copy of the packed [3D, D] or [3D] projection with its first D rows, the queries, multiplied."""
    scaled = packed.copy(order="K")  # keeps the memory order of a transposed view
    scaled[:d_model] *= factor
    return scaled
