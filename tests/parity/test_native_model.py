"""The native backend against the model run by torch, and against itself: a row is the same in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amx_lab
from native_lab import CONFIGS, PRECISIONS, config, isas, needs_library, rows_of, stored_model, token_ids
from wafergpt.backends.backend import Chunk
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.kernels import native
from wafergpt.model import family
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT

pytestmark = needs_library

# Of the largest logit. f32: the bar of every parity test here. The others: three to four times what these
# random models show (weights larger than trained ones', two layers); quality proper is measured on text.
LIMIT = {"f32": 2e-5, "bf16": 2.5e-2, "int8": 1e-1, "int4": 7e-1}


@pytest.fixture(autouse=True)
def amx_may_be_stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "choose_isa", amx_lab.choose_isa)


def torch_outputs(shape: GPTConfig, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and hidden states [T, D] by torch, float32."""
    stored = stored_model(shape)
    model = GPT.from_arrays(dict(stored.arrays), shape).eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    assert out.logits is not None
    return out.logits[0].numpy(), out.last_hidden_state[0].numpy()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_hidden_states(name: str, precision: str, isa: str) -> None:
    shape = CONFIGS[name]
    ids = token_ids(shape, shape.max_seq_len)
    logits, hidden = torch_outputs(shape, ids)
    backend = NativeCPU.from_stored(stored_model(shape), precision=precision, isa=isa, n_threads=2)
    chunk = Chunk(sequence=backend.open(), token_ids=ids, n_logits=len(ids), want_hidden=True)
    result = backend.run([chunk])[0]
    assert result.logits is not None and result.hidden is not None
    assert np.abs(result.logits - logits).max() <= LIMIT[precision] * np.abs(logits).max()
    assert np.abs(result.hidden - hidden).max() <= 2 * LIMIT[precision] * np.abs(hidden).max()
    if precision == "f32":
        assert np.array_equal(result.logits.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("isa", isas())
def test_greedy_tokens_are_torchs(isa: str) -> None:
    """Decoded one by one to the end of the window, float32."""
    for shape in CONFIGS.values():
        ids = token_ids(shape, 5)
        backend = NativeCPU.from_stored(stored_model(shape), precision="f32", isa=isa, n_threads=1)
        sequence = backend.open()
        row = backend.run([Chunk(sequence=sequence, token_ids=ids)])[0].logits
        while len(ids) < shape.max_seq_len:
            assert row is not None
            ids.append(int(row[0].argmax()))
            row = backend.run([Chunk(sequence=sequence, token_ids=ids[-1:])])[0].logits
        logits, _ = torch_outputs(shape, ids)
        assert ids[5:] == logits[4:-1].argmax(1).tolist()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_depend_on_chunks_company_or_threads(precision: str, isa: str) -> None:
    shape = config()
    stored = stored_model(shape)
    ids = token_ids(shape, 70)
    one = NativeCPU.from_stored(stored, precision=precision, isa=isa, n_threads=1)
    whole = rows_of(one, ids, [70])
    for cuts in ([1], [33, 1], [32, 5, 1, 7], [64, 6]):
        assert np.array_equal(rows_of(one, ids, cuts), whole), cuts
    many = NativeCPU.from_stored(stored, precision=precision, isa=isa, n_threads=3)
    others = [many.open() for _ in range(17)]
    sequence, rows = many.open(), []
    for at in range(0, 70, 7):
        crowd = [
            Chunk(sequence=other, token_ids=token_ids(shape, 1 + i % 5, i), n_logits=i % 2)
            for i, other in enumerate(others)
        ]
        crowd.insert(at % 18, Chunk(sequence=sequence, token_ids=ids[at : at + 7], n_logits=7))
        rows.append(many.run(crowd)[at % 18].logits)
    assert np.array_equal(np.concatenate(rows), whole)


def test_int8_products_are_the_same_on_every_instruction_set() -> None:
    """Integer sums are exact; what else a row goes through is rounded alike, to within a few units."""
    ids = token_ids(config(), 20)
    found = [
        rows_of(NativeCPU.from_stored(stored_model(config()), precision="int8", isa=isa.values[0]), ids, [20])
        for isa in isas()
        if not isa.marks
    ]
    for rows in found:
        assert np.abs(rows - found[0]).max() <= LIMIT["int8"] * np.abs(found[0]).max()


class Careless(NativeCPU):
    """Planted: in company, something leaks from one sequence into another."""

    def run(self, chunks):  # type: ignore[no-untyped-def]
        results = super().run(chunks)
        if len(chunks) > 1:
            results[0].logits[0, 0] = np.nextafter(results[0].logits[0, 0], np.float32(np.inf))
        return results


def test_the_comparison_can_fail() -> None:
    stored, ids = stored_model(config()), token_ids(config(), 9)
    honest, careless = (b.from_stored(stored, precision="int8", n_threads=1) for b in (NativeCPU, Careless))
    alone = rows_of(honest, ids, [9])
    chunks = [Chunk(sequence=careless.open(), token_ids=ids, n_logits=9) for _ in range(2)]
    assert not np.array_equal(careless.run(chunks)[0].logits, alone)
    wrong = stored_model(config(), seed=9)
    logits, _ = torch_outputs(config(), ids)
    rows = rows_of(NativeCPU.from_stored(wrong, precision="f32"), ids, [9])
    assert np.abs(rows - logits).max() > LIMIT["int4"] * np.abs(logits).max()


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_bit_equal_on_the_111m_shape(precision: str) -> None:
    """Whole (two parts of 512 rows), in chunks, one by one at the end, alone and among 16 others."""
    shape = family.get("111M").config
    rng = np.random.default_rng(0)
    stored = stored_model(shape)
    ids = rng.integers(0, shape.vocab_size, 700).tolist()
    backend = NativeCPU.from_stored(stored, precision=precision, n_threads=2, n_pages=700)
    single = NativeCPU.from_stored(stored, precision=precision, n_threads=1, n_pages=40)

    def last(sequence: int, cuts: list[int], on: NativeCPU) -> np.ndarray:
        at, rows = 0, []
        for n in cuts:
            want = 1 if at + n > 660 else 0
            result = on.run([Chunk(sequence=sequence, token_ids=ids[at : at + n], n_logits=want)])[0]
            rows += [result.logits] if want else []
            at += n
        return np.concatenate(rows)

    whole = last(backend.open(), [690, *[1] * 10], backend)
    assert np.array_equal(last(backend.open(), [100, 590, *[1] * 10], backend), whole)
    assert np.array_equal(last(single.open(), [1, 600, 89, *[1] * 10], single), whole)
    others = [backend.open() for _ in range(16)]
    lengths = rng.integers(1, 200, 16)
    mine = backend.open()
    crowd = [Chunk(sequence=s, token_ids=ids[:n], n_logits=1) for s, n in zip(others, lengths, strict=True)]
    rows = [backend.run([*crowd, Chunk(sequence=mine, token_ids=ids[:690])])[-1].logits]
    for at in range(690, 700):
        chunks = [Chunk(sequence=s, token_ids=[at], n_logits=1) for s in others]
        rows.append(backend.run([*chunks, Chunk(sequence=mine, token_ids=[ids[at]])])[-1].logits)
    assert np.array_equal(np.concatenate(rows), whole)
