"""The eager backend gives what the model gives, refuses what does not fit, and forgets on release."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wafergpt.backends import torch_eager
from wafergpt.backends.backend import Backend, Chunk, OutOfPages, PromptBackend
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
    older: PromptBackend = backend
    assert (face.vocab_size, face.max_seq_len, face.d_model) == (61, 8, 32)
    assert older.vocab_size == 61 and face.capacity.n_pages == 16


def test_prefill_and_decode_of_several_sequences(backend: TorchEager) -> None:
    a, b = backend.prefill([1, 2, 3]), backend.prefill([4])
    rows = backend.decode([b.handle, a.handle], [5, 6])
    assert a.logits.dtype == rows.dtype == np.float32 and rows.shape == (2, 61)
    # float32 sums in another order: some 1e-6 on logits of order 1
    np.testing.assert_allclose(a.logits, logits(backend, [1, 2, 3])[-1], atol=1e-5)
    np.testing.assert_allclose(rows[0], logits(backend, [4, 5])[-1], atol=1e-5)
    np.testing.assert_allclose(rows[1], logits(backend, [1, 2, 3, 6])[-1], atol=1e-5)
    assert backend.decode([], []).shape == (0, 61)


def test_score_of_windows_of_any_length(backend: TorchEager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_eager, "_SCORE_CHUNK_POSITIONS", 5)
    windows = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8], [9, 7]]  # the second fills the window: 8 inputs
    for window, found in zip(windows, backend.score(windows), strict=True):
        p = torch.tensor(logits(backend, window[:-1])).log_softmax(-1)
        expected = [p[i, token].item() for i, token in enumerate(window[1:])]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert backend.score([]) == []


def test_refusals_change_nothing(backend: TorchEager) -> None:
    a, b = backend.prefill([1, 2]), backend.prefill([1] * 8)
    for call, message in [
        (lambda: backend.prefill([]), "at least one"),
        (lambda: backend.prefill([61]), "token id 61 is outside"),
        (lambda: backend.prefill([0] * 9), "do not fit the context window of 8"),
        (lambda: backend.decode([a.handle], [99]), "token id 99 is outside"),
        (lambda: backend.decode([a.handle, b.handle], [1, 1]), "do not fit the context window of 8"),
        (lambda: backend.decode([a.handle, a.handle], [1, 1]), "named twice"),
        (lambda: backend.decode([a.handle], [1, 1]), "1 sequences but 2 tokens"),
        (lambda: backend.decode([99], [1]), "no sequence has the handle 99"),
        (lambda: backend.score([[1]]), "2 to 9 tokens, not 1"),
        (lambda: backend.score([[1] * 10]), "2 to 9 tokens, not 10"),
        (lambda: backend.score([[1, -1]]), "token id -1 is outside"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
    np.testing.assert_allclose(backend.decode([a.handle], [3])[0], logits(backend, [1, 2, 3])[-1], atol=1e-5)


def test_release_forgets(backend: TorchEager) -> None:
    handle = backend.prefill([1]).handle
    backend.release(handle)
    for call in (lambda: backend.decode([handle], [1]), lambda: backend.release(handle)):
        with pytest.raises(ConfigError, match="was released or never made"):
            call()


def test_a_bfloat16_model_gives_float32_rows() -> None:
    backend = TorchEager(GPT(CONFIG).to_compute_dtype(torch.bfloat16))
    prefill = backend.prefill([1, 2])
    assert prefill.logits.dtype == np.float32
    assert backend.decode([prefill.handle], [3]).dtype == np.float32


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
