"""Every option of `GPTConfig`, every length and padding side, against Transformers' GPT-2: 20,000 positions.

The configurations are a covering array: every pair of values of any two options stands in one of them, and
Transformers runs both of its attention implementations. A muP model is compared with a plain GPT-2 that has
its multipliers folded in. Tolerances: gpt2_lab.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_lab import LIMIT, OPTIONS, as_theirs, covering, random_model, twin
from wafergpt.model.cache import KVCache
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.gpt import GPT

transformers = pytest.importorskip("transformers")

DTYPES = pytest.mark.parametrize("dtype", LIMIT, ids=["f32", "f64"])
MIN_POSITIONS = 20_000


def config_of(mup: dict[str, float] | None, **options: Any) -> GPTConfig:
    if mup is None:
        return GPTConfig(**options)
    base = MuPConfig(base_d_model=16, base_d_ffn=64, **mup)
    return GPTConfig(**options, parametrization=Parametrization.MUP, mup=base)


CASES = [
    (config_of(**{name: value for name, value in case.items() if name != "attention"}), case["attention"])
    for case in covering({**OPTIONS, "attention": ("eager", "sdpa")})
]


@dataclass
class Tally:
    """Compares logits and counts the positions compared."""

    dtype: torch.dtype
    n_positions: int = 0
    problems: list[str] = field(default_factory=list)

    def compare(self, what: str, ours: Tensor, theirs: Tensor, real: Tensor | None = None) -> None:
        """ours, theirs [B, T, V], looked at where real [B, T] is 1."""
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == self.dtype
        real = torch.ones(ours.shape[:2]) if real is None else real
        ours, theirs = ours[real.bool()], theirs[real.bool()]  # [N, V]
        off = float((ours - theirs).abs().max() / theirs.abs().max())
        if not off <= LIMIT[self.dtype]:  # NaN, too
            self.problems.append(f"{what}: off by {off:.1e} of the largest logit")
        flipped = int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        if flipped:
            self.problems.append(f"{what}: {flipped} of {len(ours)} arg-max differ")
        self.n_positions += len(ours)


def random_ids(config: GPTConfig, n_rows: int, n_positions: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (n_rows, n_positions), generator=generator)


def masks(n_max: int) -> Iterator[tuple[str, Tensor]]:
    """One row per length 1..n_max [n_max, n_max], 1 where real: at either end, and with padding on both."""
    lengths, places = torch.arange(1, n_max + 1)[:, None], torch.arange(n_max)[None]
    for side, start in (("right", 0), ("left", n_max - lengths), ("both", (n_max - lengths) // 2)):
        yield side, ((places >= start) & (places < start + lengths)).long()


def counted(mask: Tensor) -> Tensor:
    """Positions that count real tokens; Transformers must be told, ours does it by itself."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def compare_all(model: GPT, theirs: torch.nn.Module, tally: Tally, label: str) -> None:
    """No padding at every length, three paddings, positions of any order, and the cache."""
    config, n_max = model.config, model.config.max_seq_len
    rows = random_ids(config, 2, n_max)
    for n in range(1, n_max + 1):
        tally.compare(f"{label}, length {n}", model(rows[:, :n]).logits, theirs(rows[:, :n]).logits)
    last = theirs(rows, logits_to_keep=1).logits
    tally.compare(f"{label}, the last position alone", model(rows, n_logits=1).logits, last)
    for side, mask in masks(n_max):
        ids = random_ids(config, n_max, n_max)
        padded = theirs(ids, attention_mask=mask, position_ids=counted(mask)).logits
        tally.compare(f"{label}, padded {side}", model(ids, attention_mask=mask).logits, padded, mask)
        placed = torch.randint(0, n_max, mask.shape, generator=torch.Generator().manual_seed(5))
        options = {"attention_mask": mask, "position_ids": placed}
        tally.compare(
            f"{label}, padded {side}, any positions",
            model(ids, **options).logits,
            theirs(ids, **options).logits,
            mask,
        )
        compare_cached(model, theirs, tally, f"{label}, padded {side}, cached", mask)


def compare_cached(model: GPT, theirs: torch.nn.Module, tally: Tally, label: str, mask: Tensor) -> None:
    """Both with their own key-value cache, in pieces of 1, 3, and the rest."""
    n_rows, n_max = mask.shape
    ids = random_ids(model.config, n_rows, n_max, seed=6)
    ours_cache = KVCache(model.config, n_rows, dtype=tally.dtype)
    their_cache = transformers.DynamicCache(config=theirs.config)
    ends = sorted({min(1, n_max), min(4, n_max), n_max})
    for start, end in itertools.pairwise((0, *ends)):
        seen = mask[:, :end]
        ours = model(ids[:, start:end], attention_mask=seen, cache=ours_cache).logits
        expected = theirs(
            ids[:, start:end], attention_mask=seen, position_ids=counted(seen)[:, start:],
            past_key_values=their_cache, use_cache=True,
        ).logits  # fmt: skip
        tally.compare(f"{label} from {start}", ours, expected, mask[:, start:end])


@DTYPES
def test_logits_under_every_option(dtype: torch.dtype) -> None:
    tally = Tally(dtype)
    with torch.no_grad():
        for config, attention in CASES:
            model = random_model(config, dtype)
            compare_all(model, twin(model, attention=attention), tally, f"{attention}, {config}")
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.n_positions >= MIN_POSITIONS


@DTYPES
def test_gradients_of_every_parameter_under_every_option(dtype: torch.dtype) -> None:
    """Of a fixed random combination of the logits, so that nothing passes through a narrower type.

    Theirs run through `as_theirs`, so they arrive in our names and layout, muP's folding undone by the chain
    rule. Limits as for logits, of the parameter's largest gradient.
    """
    problems = []
    for config, attention in CASES:
        model = random_model(config, dtype)
        theirs = twin(model, attention=attention)
        n_max = config.max_seq_len
        mask = list(masks(n_max))[-1][1][:: max(1, n_max // 7)]  # padding on both sides
        ids = random_ids(config, len(mask), n_max)
        logits = model(ids, attention_mask=mask).logits
        generator = torch.Generator().manual_seed(7)
        wanted = torch.randn(logits.shape, generator=generator, dtype=dtype) * mask[..., None]
        (logits * wanted).sum().backward()
        leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        state = {f"transformer.{name}": tensor for name, tensor in as_theirs(leaves, config).items()}
        options = {"attention_mask": mask, "position_ids": counted(mask)}
        their_logits = torch.func.functional_call(theirs, state, (ids,), options).logits
        (their_logits * wanted).sum().backward()
        for name, parameter in model.named_parameters():
            expected = leaves[name].grad
            off = float((parameter.grad - expected).abs().max() / expected.abs().max())
            if not off <= LIMIT[dtype]:
                problems.append(f"{attention}, {config}: gradient of {name} is off by {off:.1e}")
    assert not problems, "\n".join(problems)


def test_every_pair_of_values_is_covered() -> None:
    cases = list(covering(OPTIONS))
    for (a, first), (b, second) in itertools.combinations(OPTIONS.items(), 2):
        for values in itertools.product(first, second):
            assert any((case[a], case[b]) == values for case in cases), (a, b, values)
    assert len(cases) < 30


BASE = config_of({}, d_model=24, n_layers=2, n_heads=4, max_seq_len=9, vocab_size=97)
WRONG = {
    "activation": {"activation": Activation.GELU_TANH},
    "n_heads": {"n_heads": 3},
    "layer_norm_eps": {"layer_norm_eps": 1e-4},
    "embedding": {"mup": replace(BASE.mup, embedding_multiplier=9.99)},
    "output": {"mup": replace(BASE.mup, output_multiplier=0.999)},
    "standard": {"parametrization": Parametrization.STANDARD, "mup": None},
}


@pytest.mark.parametrize("option", WRONG)
def test_an_option_that_is_ignored_is_caught(option: str) -> None:
    """The planted bugs: the same weights under one other setting fail the comparison."""
    model = random_model(BASE, torch.float32)
    with torch.device("meta"):
        other = GPT(replace(BASE, **WRONG[option]))
    other.load_state_dict(model.state_dict(), assign=True)
    tally = Tally(torch.float32)
    with torch.no_grad():
        compare_all(model, twin(model), tally, "right")
        assert not tally.problems
        compare_all(model, twin(other), tally, "wrong")
    assert tally.problems


def test_a_cache_or_a_padding_gone_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bugs: positions that count padding; a causal mask that is off by one."""
    from wafergpt.model import gpt, inputs

    model = random_model(BASE, torch.float32)
    changes = {
        "positions_of": lambda p, _mask, past, ids: inputs.positions_of(p, None, past, ids),
        "allowed_keys": lambda m, t, s, d: inputs.allowed_keys(m, t, s, d).roll(1, -1),
    }
    for name, change in changes.items():
        tally = Tally(torch.float32)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(gpt, name, change)
            compare_all(model, twin(model), tally, name)
        assert any("padded left" in problem for problem in tally.problems)
