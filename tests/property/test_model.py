"""What holds for every input: no look into the future, padding that changes nothing, a cache that is exact.

Float64, where the order of sums moves a result by about 1e-15: equality up to 1e-12 is then a statement
about the mathematics. Causality is bit-equal: the same program runs on the same past.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.model import inputs
from wafergpt.model.cache import KVCache
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=24, n_layers=2, n_heads=3, vocab_size=31, max_seq_len=24)
MODELS = {
    p: GPT(replace(CONFIG, parametrization=p, init_std=0.3)).double().eval().requires_grad_(False)
    for p in Parametrization
}
TOLERANCE = 1e-12

models = st.sampled_from(list(MODELS.values()))
seeds = st.integers(0, 1000)
few = settings(max_examples=25, deadline=None, derandomize=True)


def random_ids(seed: int, n_rows: int, n_positions: int) -> torch.Tensor:
    return torch.randint(0, 31, (n_rows, n_positions), generator=torch.Generator().manual_seed(seed))


def pad(rows: list[torch.Tensor], sides: list[int], n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row at its own offset among other tokens, [B, n_positions], and the mask that says where."""
    ids, mask = random_ids(99, len(rows), n_positions), torch.zeros(len(rows), n_positions, dtype=torch.long)
    for row, (tokens, start) in enumerate(zip(rows, sides, strict=True)):
        ids[row, start : start + len(tokens)] = tokens
        mask[row, start : start + len(tokens)] = 1
    return ids, mask


@few
@given(
    models,
    seeds,
    st.integers(2, 24),
    st.data(),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_the_future_changes_no_bit_of_the_past(
    model: GPT, seed: int, n_positions: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    cut = data.draw(st.integers(1, n_positions - 1))
    ids = random_ids(seed, 2, n_positions)
    other = torch.cat([ids[:, :cut], random_ids(seed + 1, 2, n_positions - cut)], dim=1)
    model = GPT.from_arrays(model.to_arrays(), model.config)
    model = model.to_compute_dtype(dtype) if dtype == torch.bfloat16 else model.to(dtype)
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :cut], model(other).logits[:, :cut])


@few
@given(models, seeds, st.data())
def test_a_padded_row_equals_its_unpadded_run(model: GPT, seed: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=4))
    n_positions = max(lengths) + data.draw(st.integers(0, 6))
    starts = [data.draw(st.integers(0, n_positions - n)) for n in lengths]  # left, right and both at once
    rows = [random_ids(seed + i, 1, n)[0] for i, n in enumerate(lengths)]
    ids, mask = pad(rows, starts, n_positions)
    batched = model(ids, attention_mask=mask).logits
    assert batched.isfinite().all()  # rows that may see nothing, too
    for row, (tokens, start) in enumerate(zip(rows, starts, strict=True)):
        alone = model(tokens[None]).logits[0]
        torch.testing.assert_close(batched[row, start : start + len(tokens)], alone, rtol=0, atol=TOLERANCE)


@few
@given(models, seeds, st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
def test_the_cache_equals_the_full_forward(model: GPT, seed: int, chunks: list[int], padded: bool) -> None:
    n_positions = min(sum(chunks), 24)
    ids, mask = random_ids(seed, 2, n_positions), None
    if padded:  # the second row starts later; its first chunk may be padding throughout
        mask = torch.ones(2, n_positions, dtype=torch.bool)
        mask[1, : n_positions // 2] = False
    full = model(ids, attention_mask=mask).logits
    cache, parts, start = KVCache(CONFIG, 2, n_positions, dtype=torch.float64), [], 0
    with torch.no_grad():
        for chunk in chunks:
            end = min(start + chunk, n_positions)
            if end > start:
                seen = None if mask is None else mask[:, :end]
                parts.append(model(ids[:, start:end], attention_mask=seen, cache=cache).logits)
            start = end
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=TOLERANCE)


@few
@given(models, seeds, st.integers(1, 6))
def test_the_cache_remembers_its_padding(model: GPT, seed: int, n_new: int) -> None:
    """After a padded prompt on either side, new tokens need no mask."""
    rows = [random_ids(seed, 1, 7)[0], random_ids(seed + 1, 1, 3)[0]]
    new = random_ids(seed + 2, 2, n_new)
    for starts in ([0, 0], [0, 4]):
        ids, mask = pad(rows, starts, 7)
        cache = KVCache(CONFIG, 2, dtype=torch.float64)
        with torch.no_grad():
            model(ids, attention_mask=mask, cache=cache)
            continued = torch.cat([model(new[:, i : i + 1], cache=cache).logits for i in range(n_new)], 1)
        for row, tokens in enumerate(rows):
            alone = model(torch.cat([tokens, new[row]])[None], n_logits=n_new).logits[0]
            torch.testing.assert_close(continued[row], alone, rtol=0, atol=TOLERANCE)


def test_a_row_of_padding_alone_is_finite_and_harmless() -> None:
    model = next(iter(MODELS.values()))
    ids = random_ids(0, 2, 5)
    mask = torch.tensor([[1] * 5, [0] * 5])
    output = model(ids, attention_mask=mask, output_attentions=True)
    assert output.logits.isfinite().all()
    assert all((weights[1] == 0).all() for weights in output.attentions)
    torch.testing.assert_close(output.logits[0], model(ids[:1]).logits[0], rtol=0, atol=TOLERANCE)


def test_planted_bugs_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count padding, and a mask that is off by one, fail the properties above."""
    with monkeypatch.context() as patch:
        from wafergpt.model import gpt

        patch.setattr(
            gpt, "positions_of", lambda p, _mask, past, ids: inputs.positions_of(p, None, past, ids)
        )
        with pytest.raises(AssertionError):
            test_a_padded_row_equals_its_unpadded_run()
    with monkeypatch.context() as patch:
        patch.setattr(
            gpt, "allowed_keys", lambda m, t, s, d: inputs.allowed_keys(m, t, s, d).roll(1, -1) if s > t else
            inputs.allowed_keys(m, t, s, d),
        )  # fmt: skip
        with pytest.raises(AssertionError):
            test_the_cache_equals_the_full_forward()
