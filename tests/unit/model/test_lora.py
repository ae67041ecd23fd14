"""Adapters: nothing changes at first, merging is what was trained, unmerging gives the old bits back."""

from __future__ import annotations

import pytest
import torch

from wafergpt.errors import ConfigError
from wafergpt.model import lora
from wafergpt.model.config import LORA_TARGETS, GPTConfig, LoRAConfig
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=61, max_seq_len=16)
IDS = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(5))
EVERYTHING = LoRAConfig(rank=4, alpha=8.0, targets=LORA_TARGETS)


def trained(config: LoRAConfig = EVERYTHING, dtype: torch.dtype = torch.float64) -> GPT:
    """A model whose adapters say something."""
    model = lora.add_adapters(GPT(CONFIG, seed=3), config, seed=1).to(dtype)
    generator = torch.Generator().manual_seed(2)
    for module in lora.adapted(model).values():
        module.lora_b.data.copy_(torch.randn(module.lora_b.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    found = model(IDS).logits
    assert found is not None
    return found


def test_new_adapters_change_nothing_and_freeze_the_rest() -> None:
    model = GPT(CONFIG, seed=3)
    before = logits(model)
    lora.add_adapters(model, EVERYTHING)
    assert torch.equal(logits(model), before)
    learning = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"lora_a", "lora_b"}
    assert len(lora.adapted(model)) == 1 + 4 * CONFIG.n_layers
    with pytest.raises(ConfigError, match="has adapters already"):
        lora.add_adapters(model, EVERYTHING)


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("wte",), ("attn.c_attn",)])
def test_a_merged_model_is_the_one_that_was_trained(targets: tuple[str, ...]) -> None:
    """Float64: logits of order 1, products of at most 128 terms; 1e-11 is far above their roundings."""
    model = trained(LoRAConfig(rank=4, targets=targets))
    apart = logits(model)
    plain = logits(GPT(CONFIG, seed=3).double())
    assert (apart - plain).abs().max() > 1e-3
    assert torch.allclose(logits(lora.merge(model)), apart, rtol=0, atol=1e-11)


def test_the_tied_embedding_stays_tied() -> None:
    """Its adapter changes input and head alike: a plain model with the merged table says the same."""
    model = lora.merge(trained(LoRAConfig(rank=4, targets=("wte",))))
    plain = GPT(CONFIG, seed=3).double()
    plain.wte.weight.data.copy_(model.wte.weight)
    assert torch.equal(logits(plain), logits(model))


def test_unmerging_gives_the_bits_back() -> None:
    model = trained(dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    apart = logits(model)
    lora.unmerge(lora.merge(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(logits(model), apart)


def test_adding_and_subtracting_would_not_give_the_bits_back() -> None:
    """Why the weight is kept: the planted shortcut fails the comparison above."""
    module = next(iter(lora.adapted(trained(dtype=torch.float32)).values()))
    delta = module.scale * (module.lora_b @ module.lora_a)
    assert not torch.equal((module.weight + delta) - delta, module.weight)


def test_merged_twice() -> None:
    model = lora.merge(trained())
    with pytest.raises(ConfigError, match="is merged already; a second time would add it again"):
        lora.merge(model)
    with pytest.raises(ConfigError, match="has no adapters to merge"):
        lora.merge(GPT(CONFIG))
    with pytest.raises(ConfigError, match="not merged, so there is nothing to undo"):
        lora.unmerge(lora.unmerge(model))


def test_gradients_reach_the_adapters_only() -> None:
    model = trained(dtype=torch.float32).to_compute_dtype(torch.bfloat16)
    model.loss(IDS[:, :-1].contiguous(), IDS[:, 1:].contiguous()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name), name
        assert parameter.grad is None or torch.count_nonzero(parameter.grad) > 0, name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "lora.rank = 0"),
        ({"alpha": 0.0}, "lora.alpha"),
        ({"targets": ()}, "nothing to train"),
        ({"targets": ("attn.c_atn",)}, "did you mean 'attn.c_attn'"),
    ],
)
def test_wrong_configs(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoRAConfig(**changes)  # type: ignore[arg-type]
