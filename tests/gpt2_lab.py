"""What the parity tests against Transformers' GPT-2 share: random models, their twins, the comparison.

Tolerances: float32 rounds at 6e-8; through 3 layers of sums over up to 96 terms a few hundred roundings
meet, each about as likely up as down, so 2e-5 of the largest logit is ample and 100 times below any
difference in the mathematics (erf or tanh GELU differ by 5e-4). float64: the same argument from 1e-16
gives 1e-10 with room to spare.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from wafergpt.model.config import Activation, GPTConfig
from wafergpt.model.gpt import GPT

LIMIT = {torch.float32: 2e-5, torch.float64: 1e-10}  # of the largest logit
OPTIONS: dict[str, tuple[Any, ...]] = {
    "activation": tuple(Activation),
    "d_model": (24, 48),
    "n_heads": (1, 4, 24),  # d_head from 48 down to 1
    "n_layers": (1, 3),
    "d_ffn": (None, 40, 101),  # 4 d_model, narrower, no multiple of anything
    "layer_norm_eps": (1e-5, 1e-3, 1e-12),
    "mup": (None, {}, {"embedding_multiplier": 3.0, "output_multiplier": 0.7}),
    "max_seq_len": (1, 9, 56),
    "vocab_size": (2, 97, 300),
}


def covering(options: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Few combinations in which every pair of values of any two options occurs (greedy)."""
    names = list(options)
    open_pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(options[a]))
        for j in range(len(options[b]))
    }
    while open_pairs:
        a, i, b, j = min(open_pairs)  # a pair that is certainly new, so this ends
        chosen = {a: i, b: j}
        for name in names:
            if name not in chosen:
                gains = [
                    len(_pairs({**chosen, name: k}, names) & open_pairs) for k in range(len(options[name]))
                ]
                chosen[name] = gains.index(max(gains))
        open_pairs -= _pairs(chosen, names)
        yield {name: options[name][chosen[name]] for name in names}


def _pairs(chosen: Mapping[str, int], names: Sequence[str]) -> set[tuple[str, int, str, int]]:
    present = [name for name in names if name in chosen]
    return {(a, chosen[a], b, chosen[b]) for a, b in itertools.combinations(present, 2)}


def random_model(config: GPTConfig, dtype: torch.dtype) -> GPT:
    """Weights at std 0.1, biases too, LayerNorm weights around 1: nothing is trivial."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    return model.to(dtype).eval()


def twin(model: GPT, kind: str = "GPT2LMHeadModel", attention: str = "eager") -> torch.nn.Module:
    """Transformers' model with the same weights (muP folded in)."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    settings = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, n_inner=config.d_ffn,
        activation_function="gelu" if config.activation is Activation.GELU else "gelu_new",
        layer_norm_epsilon=config.layer_norm_eps, attn_implementation=attention,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = getattr(transformers, kind)(settings).to(model.wte.weight.dtype).eval()
    prefix = "transformer." if kind == "GPT2LMHeadModel" else ""
    state = theirs.state_dict()
    for name, tensor in as_theirs(dict(model.named_parameters()), config).items():
        state[prefix + name].copy_(tensor.detach())
    return theirs  # type: ignore[no-any-return]


def as_theirs(parameters: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our parameters as theirs, by differentiable steps: transposed, and muP folded into a plain tied GPT-2.

    Transformers has no muP. (wte + wpe) e, attention q.k / K and logits h.wte s are the same as embeddings
    times e, queries divided by sqrt(K) and a final LayerNorm times s / e. Written from the muP rules (Model
    Zoo 1.9.1 gpt3/README.md), not with `model.mup`, which is under test.
    """
    theirs = {name: theirs_as_ours(name, tensor) for name, tensor in parameters.items()}
    if config.mup is None:
        return theirs
    e = config.mup.embedding_multiplier
    s = config.mup.output_multiplier * config.mup.base_d_model / config.d_model
    scale = {"wte.weight": e, "wpe.weight": e, "ln_f.weight": s / e, "ln_f.bias": s / e}
    queries = torch.ones(3 * config.d_model, dtype=theirs["wte.weight"].dtype)
    queries[: config.d_model] /= (config.d_model / config.n_heads) ** 0.5
    return {name: t * (queries if "c_attn" in name else scale.get(name, 1)) for name, t in theirs.items()}


def theirs_as_ours(name: str, tensor: Tensor) -> Tensor:
    """Their Conv1D stores [in, out], our Linear [out, in]; the change is its own inverse."""
    return tensor.T if ".c_" in name and tensor.ndim == 2 else tensor


def assert_close(ours: Tensor, theirs: Tensor, real: Tensor | None, dtype: torch.dtype) -> None:
    """Within LIMIT of the largest value, at the real positions [B, T]."""
    if real is not None:
        ours, theirs = ours[real.bool()], theirs[real.bool()]
    assert (ours - theirs).abs().max() <= LIMIT[dtype] * theirs.abs().max()
