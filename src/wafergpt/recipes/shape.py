"""How wide and how deep: a model of the family's proportions for a number of parameters. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.units import format_count

# Published: "aspect ratio d_model / n_layers about 80, or GPT-3 shapes" (Model Zoo 1.9.1
# Cerebras_GPT/README.md). 111M to 2.7B lie between 76.8 and 85.3; 6.7B and 13B take GPT-3's 128.
ASPECT_RATIO = 80.0
GPT3_ASPECT_RATIO = 128.0
GPT3_SHAPES_FROM_PARAMS = 4.2e9  # geometric mean of 2.7B and 6.7B, where the published sizes change over

PUBLISHED_VOCAB_SIZE = 50257  # GPT-2 BPE
PUBLISHED_SEQ_LEN = 2048

# Ours, for models below the published sizes, where GPT-2's vocabulary alone would be most of the model.
SMALL_MODEL_PARAMS = 1e8  # just below 111M, the smallest published size
MIN_LAYERS = 4  # 80 : 1 would leave one or two layers below d_model 256
EMBEDDING_SHARE = 0.35  # of the parameters, as in 111M (34.8 %): sets the vocabulary, a power of two
POSITION_SHARE = 0.025  # of the parameters (1.4 % in 111M): sets the sequence length, a power of two
MIN_VOCAB_SIZE = 512  # byte-level BPE needs 256 bytes, end-of-text, and some merges
MIN_SEQ_LEN = 128

MAX_D_MODEL = 16384
TOLERANCE = 0.25  # of log parameters: a request that no shape meets this closely is refused


def d_head_for(d_model: int) -> int:
    """Head width as published (but 2.7B's 80): 64 up to 256M, 128 from 590M; 32 where 64 does not fit."""
    if d_model >= 1536:
        return 128
    return 64 if d_model % 64 == 0 else 32


def vocab_size_for(n_params: float, d_model: int) -> int:
    """GPT-2's 50257 from 100M parameters on; below, the largest power of two within `EMBEDDING_SHARE`.

    Returns 0 when that would be below `MIN_VOCAB_SIZE`.
    """
    if n_params >= SMALL_MODEL_PARAMS:
        return PUBLISHED_VOCAB_SIZE
    size = _power_of_two_below(EMBEDDING_SHARE * n_params / d_model)
    return min(size, 32768) if size >= MIN_VOCAB_SIZE else 0


def seq_len_for(n_params: float, d_model: int) -> int:
    """2048 from 100M parameters on; below, the largest power of two within `POSITION_SHARE`, 128 to 2048."""
    if n_params >= SMALL_MODEL_PARAMS:
        return PUBLISHED_SEQ_LEN
    size = _power_of_two_below(POSITION_SHARE * n_params / d_model)
    return min(max(size, MIN_SEQ_LEN), PUBLISHED_SEQ_LEN)


def shape(
    n_params: float,
    *,
    parametrization: Parametrization = Parametrization.MUP,
    vocab_size: int | None = None,
    seq_len: int | None = None,
) -> GPTConfig:
    """The model of the family's proportions whose parameter count is closest to `n_params`.

    Vocabulary and sequence length follow the rules above unless given. The seven published sizes come
    out with their own width and depth. Raises ConfigError when no shape comes within 25 %.
    """
    if not (math.isfinite(n_params) and n_params > 0):
        raise ConfigError(f"n_params = {n_params!r} must be positive and finite")
    best: tuple[float, GPTConfig] | None = None
    for d_model, n_layers in _proportions(n_params):
        vocabulary = vocab_size_for(n_params, d_model) if vocab_size is None else vocab_size
        if not vocabulary:
            continue
        config = GPTConfig(
            d_model=d_model,
            n_layers=n_layers,
            n_heads=d_model // d_head_for(d_model),
            vocab_size=vocabulary,
            max_seq_len=seq_len_for(n_params, d_model) if seq_len is None else seq_len,
            parametrization=parametrization,
        )
        # Closeness first; the proportions decide between shapes of nearly the same size.
        preferred_layers = max(MIN_LAYERS, d_model / _aspect_ratio(n_params))
        error = abs(math.log(config.n_params / n_params))
        score = error + 0.1 * abs(math.log(n_layers / preferred_layers))
        if error <= TOLERANCE and (best is None or score < best[0]):
            best = (score, config)
    if best is None:
        fixed = f" with vocabulary {vocab_size}" if vocab_size is not None else ""
        raise ConfigError(
            f"no shape of the family's proportions has about {format_count(n_params)} parameters{fixed}; "
            "sizes from about 0.25M to 400B can be derived, a small one only with a small vocabulary"
        )
    return best[1]


def _aspect_ratio(n_params: float) -> float:
    return GPT3_ASPECT_RATIO if n_params >= GPT3_SHAPES_FROM_PARAMS else ASPECT_RATIO


def _proportions(n_params: float) -> Iterator[tuple[int, int]]:
    """(d_model, n_layers) with an aspect ratio within 1.6 times the preferred one, or 4 to 6 layers."""
    ratio = _aspect_ratio(n_params)
    for d_model in (*range(64, 192, 32), *range(192, 1536, 64), *range(1536, MAX_D_MODEL + 1, 128)):
        fewest = max(MIN_LAYERS, math.ceil(d_model / (1.6 * ratio)))
        most = max(MIN_LAYERS + 2, math.floor(d_model * 1.6 / ratio))
        for n_layers in range(fewest, most + 1):
            if 12 * n_layers * d_model**2 <= 1.3 * n_params:  # the blocks alone already exceed it otherwise
                yield d_model, n_layers


def _power_of_two_below(value: float) -> int:
    return 2 ** math.floor(math.log2(value)) if value >= 1 else 0
