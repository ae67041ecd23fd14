"""The eager backend gives what the model gives, refuses what does not fit, and forgets on release."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wafergpt.backends.backend import Backend, Chunk, OutOfPages
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=61, max_seq_len=8, init_std=0.3)


@pytest.fixture
def backend() -> TorchEager:
    return TorchEager(GPT(CONFIG))


def logits(backend: TorchEager, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return backend.model(torch.tensor([ids])).logits[0].numpy()


def test_is_a_backend(backend: TorchEager) -> None:
    face: Backend = backend
    assert (face.vocab_size, face.max_seq_len, face.d_model) == (61, 8, 32)
    assert face.capacity.n_pages == 16


def test_release_forgets(backend: TorchEager) -> None:
    sequence = backend.open()
    backend.run([Chunk(sequence=sequence, token_ids=[1])])
    backend.release(sequence)
    for call in (
        lambda: backend.run([Chunk(sequence=sequence, token_ids=[1])]),
        lambda: backend.release(sequence),
        lambda: backend.fork(sequence, 0),
    ):
        with pytest.raises(ConfigError, match="was released or never made"):
            call()


def test_a_bfloat16_model_gives_float32_rows() -> None:
    backend = TorchEager(GPT(CONFIG).to_compute_dtype(torch.bfloat16))
    sequence = backend.open()
    for ids in ([1, 2], [3]):
        result = backend.run([Chunk(sequence=sequence, token_ids=ids, want_hidden=True)])[0]
        assert result.logits is not None and result.hidden is not None
        assert result.logits.dtype == result.hidden.dtype == np.float32


def test_chunks_of_several_sequences(backend: TorchEager) -> None:
    first, second = backend.open(), backend.open()
    backend.run([Chunk(sequence=first, token_ids=[1, 2], n_logits=0)])
    results = backend.run(
        [
            Chunk(sequence=second, token_ids=[4, 5, 6], n_logits=2, want_hidden=True),
            Chunk(sequence=first, token_ids=[3]),
        ]
    )
    assert results[0].logits is not None and results[1].logits is not None and results[1].hidden is None
    np.testing.assert_allclose(results[0].logits, logits(backend, [4, 5, 6])[1:], atol=1e-5)
    np.testing.assert_allclose(results[1].logits, logits(backend, [1, 2, 3])[2:], atol=1e-5)
    with torch.no_grad():
        hidden = backend.model(torch.tensor([[4, 5, 6]])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(results[0].hidden, hidden, atol=1e-5)
    assert backend.run([]) == []


def test_a_fork_goes_its_own_way(backend: TorchEager) -> None:
    origin = backend.open()
    backend.run([Chunk(sequence=origin, token_ids=[1, 2, 3])])
    fork = backend.fork(origin, 2)
    rows = [r.logits for r in backend.run([Chunk(sequence=s, token_ids=[9]) for s in (fork, origin)])]
    np.testing.assert_allclose(rows[0], logits(backend, [1, 2, 9])[2:], atol=1e-5)
    np.testing.assert_allclose(rows[1], logits(backend, [1, 2, 3, 9])[3:], atol=1e-5)


def test_a_step_refused_changes_nothing() -> None:
    backend = TorchEager(GPT(CONFIG), n_pages=2)
    first, second = backend.open(), backend.open()
    backend.run([Chunk(sequence=first, token_ids=[1, 2])])
    for chunks, message in [
        ([Chunk(sequence=first, token_ids=[3]), Chunk(sequence=second, token_ids=[61])], "id 61 is outside"),
        ([Chunk(sequence=first, token_ids=[3]), Chunk(sequence=first, token_ids=[4])], "named twice"),
        ([Chunk(sequence=first, token_ids=[0] * 7)], "do not fit the context window of 8"),
        ([Chunk(sequence=first, token_ids=[])], "at least one token"),
        ([Chunk(sequence=first, token_ids=[3], n_logits=2)], r"n_logits = 2 is not in 0\.\.1"),
        ([Chunk(sequence=99, token_ids=[3])], "no sequence has the handle 99"),
    ]:
        with pytest.raises(ConfigError, match=message):
            backend.run(chunks)
    with pytest.raises(ConfigError, match="2 tokens are held, 3 cannot"):
        backend.fork(first, 3)
    third = backend.fork(first, 1)  # the second and last page
    with pytest.raises(OutOfPages, match="1 pages of key-value memory are needed, 0 are free"):
        backend.run([Chunk(sequence=first, token_ids=[3]), Chunk(sequence=second, token_ids=[1])])
    backend.release(third)
    backend.run([Chunk(sequence=second, token_ids=[1])])
    row = backend.run([Chunk(sequence=first, token_ids=[3])])[0].logits
    np.testing.assert_allclose(row, logits(backend, [1, 2, 3])[2:], atol=1e-5)
