"""The compiled backend against the eager one: rows, refusals, slots that come and go, few graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wafergpt.backends import torch_compiled
from wafergpt.backends.backend import Backend, Chunk, OutOfPages
from wafergpt.backends.torch_compiled import TorchCompiled, forward
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.errors import ConfigError
from wafergpt.model.config import Activation, GPTConfig, Parametrization
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=61, max_seq_len=200, init_std=0.3)
MUP = GPTConfig(
    d_model=32,
    n_layers=1,
    n_heads=2,
    vocab_size=61,
    max_seq_len=24,
    init_std=0.3,
    activation=Activation.GELU_TANH,
    parametrization=Parametrization.MUP,
)


def uncompiled(model: GPT, **options: int) -> TorchCompiled:
    backend = TorchCompiled(model, **options)
    backend._decode = forward
    return backend


def play(backend: Backend, seed: int, n_steps: int = 60) -> list[np.ndarray]:
    """A random life: sequences open, fork, grow by one token or many together, and go; all rows asked for."""
    random = np.random.default_rng(seed)
    held: dict[int, int] = {}
    rows = []
    for _ in range(n_steps):
        action = random.integers(6)
        if action == 0 or not held:
            held[backend.open()] = 0
        elif action == 1 and len(held) > 1:
            sequence = int(random.choice(list(held)))
            backend.release(sequence)
            del held[sequence]
        elif action == 2:
            origin = int(random.choice(list(held)))
            n = int(random.integers(held[origin] + 1))
            held[backend.fork(origin, n)] = n
        else:
            chunks = []
            for sequence, n_held in held.items():
                n = int(random.choice([0, 1, 1, 1, 7]))
                if 0 < n <= backend.max_seq_len - n_held:
                    ids = random.integers(0, backend.vocab_size, n).tolist()
                    chunks.append(
                        Chunk(
                            sequence=sequence,
                            token_ids=ids,
                            n_logits=int(random.integers(n + 1)),
                            want_hidden=bool(random.integers(2)),
                        )
                    )
                    held[sequence] += n
            for result in backend.run(chunks):
                rows += [r for r in (result.logits, result.hidden) if r is not None]
    return rows


@pytest.mark.parametrize("config", [CONFIG, MUP], ids=["standard", "muP"])
def test_rows_are_the_eager_ones(config: GPTConfig) -> None:
    """float32 sums in another order: some 1e-6 on rows of order 1. Slots are used again, windows fill up."""
    model = GPT(config)
    for seed in range(4):
        expected, found = play(TorchEager(model), seed, 40), play(uncompiled(model), seed, 40)
        assert len(expected) == len(found) > 20
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape and b.dtype == np.float32
            np.testing.assert_allclose(a, b, atol=1e-4)


def n_compiled() -> int:
    """Graphs that torch has compiled since the counters were cleared."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> tuple[GPT, TorchCompiled]:
    """Really compiled; a graph for every 8, 16 and more keys."""
    monkeypatch.setattr(torch_compiled, "_FEWEST_KEYS", 8)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = GPT(MUP)
    return model, TorchCompiled(model)


def test_compiled_steps_are_the_same_in_few_graphs(compiled: tuple[GPT, TorchCompiled]) -> None:
    """One sequence up to 7 positions, then two beyond 8: a graph for each, met once."""
    model, backend = compiled
    eager = TorchEager(model)
    first, second = (backend.open(), eager.open()), (backend.open(), eager.open())

    def step(*chunks: tuple[tuple[int, int], list[int]]) -> None:
        found, expected = (
            b.run([Chunk(sequence=s[i], token_ids=ids, want_hidden=True) for s, ids in chunks])
            for i, b in enumerate((backend, eager))
        )
        for a, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.logits, e.logits, atol=1e-4)
            np.testing.assert_allclose(a.hidden, e.hidden, atol=1e-4)

    for token_id in range(3):
        step((first, [token_id]))
    step((second, [7] * 9))
    for token_id in range(3):
        step((second, [token_id]), (first, [5]))
    step((second, [8]))
    assert n_compiled() == backend.n_graphs == 2


@pytest.mark.long
def test_a_life_of_compiled_steps_is_the_same_in_few_graphs(compiled: tuple[GPT, TorchCompiled]) -> None:
    model, backend = compiled
    for seed in range(2):
        for a, b in zip(play(TorchEager(model), seed, 30), play(backend, seed, 30), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert n_compiled() == backend.n_graphs <= 12
    sequence = backend.open()
    for _ in range(2):
        backend.run([Chunk(sequence=sequence, token_ids=[5])])
        known = backend.n_graphs
    backend.run([Chunk(sequence=sequence, token_ids=[6])])
    assert n_compiled() == backend.n_graphs == known


def test_an_idle_slot_that_wrote_where_others_look_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(CONFIG)
    careful = TorchCompiled._run_decodes

    def careless(self: TorchCompiled, chunks: list[Chunk]) -> object:
        busy = {chunk.sequence for chunk in chunks}
        lengths = self._lengths
        self._lengths = {s: n if s in busy else max(0, n - 1) for s, n in lengths.items()}
        try:
            return careful(self, chunks)
        finally:
            self._lengths = lengths

    monkeypatch.setattr(TorchCompiled, "_run_decodes", careless)
    pairs = zip(play(TorchEager(model), 1), play(uncompiled(model), 1), strict=True)
    assert any(np.abs(a - b).max() > 1e-2 for a, b in pairs)


def test_a_failed_compilation_is_reported_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(MUP)

    def no_compiler(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

    backend = TorchCompiled(model)
    backend._decode = no_compiler  # type: ignore[assignment]
    sequence = backend.open()
    with pytest.warns(UserWarning, match=r"torch.compile failed, going on without it: no C\+\+ compiler"):
        row = backend.run([Chunk(sequence=sequence, token_ids=[5])])[0].logits
    np.testing.assert_allclose(row, model(torch.tensor([[5]])).logits[0].detach(), atol=1e-5)


def test_bfloat16_rows_are_float32() -> None:
    backend = uncompiled(GPT(CONFIG).to_compute_dtype(torch.bfloat16))
    sequence = backend.open()
    for ids in ([1, 2], [3]):
        result = backend.run([Chunk(sequence=sequence, token_ids=ids, want_hidden=True)])[0]
        assert result.logits is not None and result.hidden is not None
        assert result.logits.dtype == result.hidden.dtype == np.float32


def test_a_step_refused_changes_nothing() -> None:
    model = GPT(CONFIG)
    backend = uncompiled(model, n_pages=2)
    first, second = backend.open(), backend.open()
    backend.run([Chunk(sequence=first, token_ids=[1, 2])])
    for chunks, message in [
        ([Chunk(sequence=first, token_ids=[3]), Chunk(sequence=second, token_ids=[61])], "id 61 is outside"),
        ([Chunk(sequence=first, token_ids=[3]), Chunk(sequence=first, token_ids=[4])], "named twice"),
        ([Chunk(sequence=first, token_ids=[0] * 199)], "do not fit the context window of 200"),
        ([Chunk(sequence=first, token_ids=[])], "at least one token"),
        ([Chunk(sequence=first, token_ids=[3], n_logits=2)], r"n_logits = 2 is not in 0\.\.1"),
        ([Chunk(sequence=99, token_ids=[3])], "no sequence has the handle 99"),
    ]:
        with pytest.raises(ConfigError, match=message):
            backend.run(chunks)
    with pytest.raises(OutOfPages, match="2 pages of key-value memory are needed, 1 are free"):
        backend.run([Chunk(sequence=first, token_ids=[0] * 15), Chunk(sequence=second, token_ids=[1])])
    row = backend.run([Chunk(sequence=first, token_ids=[3])])[0].logits
    np.testing.assert_allclose(row, model(torch.tensor([[1, 2, 3]])).logits[0, 2:].detach(), atol=1e-5)
