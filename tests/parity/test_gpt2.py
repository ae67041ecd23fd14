"""Our forward pass against Transformers' GPT-2, an independent implementation, on tiny random models.

Tolerances: float32 rounds at 6e-8; through 3 layers of sums over up to 96 terms a few hundred roundings
meet, each about as likely up as down, so 2e-5 of the largest logit is ample and 100 times below any
difference in the mathematics (erf or tanh GELU differ by 5e-4, see the planted bug). float64: the same
argument from 1e-16 gives 1e-10 with room to spare.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.gpt import GPT

transformers = pytest.importorskip("transformers")

TINY = GPTConfig(d_model=48, n_layers=3, n_heads=4, vocab_size=97, max_seq_len=32)
CONFIGS = {
    "cerebras": TINY,
    "gpt2": replace(TINY, activation=Activation.GELU_TANH),
    "narrow_ffn": replace(TINY, d_ffn=40),
    "one_head": replace(TINY, n_heads=1, layer_norm_eps=1e-3),
}
LIMIT = {torch.float32: 2e-5, torch.float64: 1e-10}  # of the largest logit


def random_model(config: GPTConfig, dtype: torch.dtype) -> GPT:
    """Weights at std 0.1, biases too, LayerNorm weights around 1: nothing is trivial."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    return model.to(dtype).eval()


def twin(model: GPT, kind: str = "GPT2LMHeadModel") -> torch.nn.Module:
    """Transformers' model with the same weights."""
    config = model.config
    settings = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, n_inner=config.d_ffn,
        activation_function="gelu" if config.activation is Activation.GELU else "gelu_new",
        layer_norm_epsilon=config.layer_norm_eps, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = getattr(transformers, kind)(settings).to(model.wte.weight.dtype).eval()
    prefix = "transformer." if kind == "GPT2LMHeadModel" else ""
    state = theirs.state_dict()
    for name, parameter in model.named_parameters():
        state[prefix + name].copy_(theirs_as_ours(name, parameter.detach()))
    return theirs  # type: ignore[no-any-return]


def theirs_as_ours(name: str, tensor: Tensor) -> Tensor:
    """Their Conv1D stores [in, out], our Linear [out, in]; the change is its own inverse."""
    return tensor.T if ".c_" in name and tensor.ndim == 2 else tensor


def ids(config: GPTConfig, n_rows: int = 3, n_positions: int = 17) -> Tensor:
    return torch.randint(
        0, config.vocab_size, (n_rows, n_positions), generator=torch.Generator().manual_seed(2)
    )


def padding(side: str, n_positions: int) -> Tensor | None:
    """Rows of 17, 9 and 1 real tokens."""
    if side == "none":
        return None
    counts = torch.tensor([n_positions, 9, 1])[:, None]
    places = torch.arange(n_positions)[None]
    return (places < counts if side == "right" else places >= n_positions - counts).long()


def assert_close(ours: Tensor, theirs: Tensor, real: Tensor | None, dtype: torch.dtype) -> None:
    if real is not None:
        ours, theirs = ours[real.bool()], theirs[real.bool()]
    assert (ours - theirs).abs().max() <= LIMIT[dtype] * theirs.abs().max()


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, dtype: torch.dtype, side: str) -> None:
    model = random_model(CONFIGS[name], dtype)
    input_ids = ids(model.config)
    mask = padding(side, input_ids.shape[1])
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)  # theirs must be told
    with torch.no_grad():
        ours = model(input_ids, attention_mask=mask).logits
        theirs = twin(model)(input_ids, attention_mask=mask, position_ids=positions).logits
    assert_close(ours, theirs, mask, dtype)
    real = slice(None) if mask is None else mask.bool()
    assert torch.equal(ours[real].argmax(-1), theirs[real].argmax(-1))


def test_hidden_states_attentions_and_explicit_positions() -> None:
    model = random_model(TINY, torch.float64)
    input_ids = ids(TINY)
    positions = torch.arange(17).flip(0).expand(3, -1) + 5
    options = {"position_ids": positions, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours = model(input_ids, **options)
        theirs = twin(model, "GPT2Model")(input_ids, **options)
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, None, torch.float64)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == TINY.n_layers + 1
    assert len(ours.attentions) == len(theirs.attentions) == TINY.n_layers
    for a, b in zip(
        (*ours.hidden_states, *ours.attentions), (*theirs.hidden_states, *theirs.attentions), strict=True
    ):
        assert a.shape == b.shape
        assert_close(a, b, None, torch.float64)


def test_mup_equals_a_plain_gpt2_with_the_multipliers_folded_in() -> None:
    """Transformers has no muP; the Model Zoo's converter (tools/checkpoint_converters/mup.py) folds it."""
    config = replace(TINY, parametrization=Parametrization.MUP, mup=MuPConfig(base_d_model=16, base_d_ffn=64))
    model = random_model(config, torch.float64)
    theirs = twin(model)
    core = theirs.transformer
    with torch.no_grad():
        theirs.lm_head.weight = torch.nn.Parameter(core.wte.weight / 3)  # d_model is 3 times the base
        core.wte.weight *= 10
        core.wpe.weight *= 10
        for block in core.h:
            key = slice(config.d_model, 2 * config.d_model)
            block.attn.c_attn.weight[:, key] /= config.d_head**0.5
            block.attn.c_attn.bias[key] /= config.d_head**0.5
        input_ids = ids(config)
        assert_close(model(input_ids).logits, theirs(input_ids).logits, None, torch.float64)


def test_loss_and_gradients() -> None:
    model = random_model(TINY, torch.float64)
    theirs = twin(model)
    input_ids = ids(TINY)
    labels = torch.cat([input_ids[:, 1:], torch.full((3, 1), -100)], dim=1)  # theirs shifts by itself
    loss = model.loss(input_ids, labels)
    their_loss = theirs(input_ids, labels=input_ids).loss
    # Everything is float64 but their loss, which goes through float32: 6e-8 of a number near 5.
    assert abs(loss.item() - their_loss.item()) < 1e-6
    loss.backward()
    their_loss.backward()
    found = dict(theirs.transformer.named_parameters())
    for name, parameter in model.named_parameters():
        their_grad = theirs_as_ours(name, found[name].grad)
        # Theirs passes through float32 at the logits: 6e-8 relative, of the largest gradient.
        assert (parameter.grad - their_grad).abs().max() <= 1e-6 * their_grad.abs().max(), name


def test_planted_bug_is_caught() -> None:
    """The comparison can fail: the other GELU is well beyond the tolerance."""
    model = random_model(TINY, torch.float32)
    theirs = twin(model)
    for block in model.h:
        block.mlp.tanh = True
    input_ids = ids(TINY)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_close(model(input_ids).logits, theirs(input_ids).logits, None, torch.float32)
