"""PyTorch fails in the middle of something: nothing has changed, and nothing of it is seen later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wafergpt.backends import torch_compiled
from wafergpt.backends.backend import Chunk
from wafergpt.backends.torch_compiled import TorchCompiled
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import Failed, Finished, Generate, Terms
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.scheduler import Limits
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT

CONFIG = GPTConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=31, max_seq_len=40, init_std=0.3)
MODEL = GPT(CONFIG)

Torch = TorchCompiled | TorchEager


class Fuse:
    """Blows at one of the calls of what goes through it."""

    def __init__(self) -> None:
        self.n_calls, self.at = 0, -1

    def wrap(self, function: Any) -> Any:
        def faulty(*arguments: Any, **named: Any) -> Any:
            self.n_calls += 1
            if self.n_calls == self.at + 1:
                raise torch.OutOfMemoryError("planted")
            return function(*arguments, **named)

        return faulty


@pytest.fixture(params=["compiled", "eager"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Fuse]:
    """What makes a backend, and the fuse in whatever of torch it calls to compute or to take memory."""
    fuse = Fuse()
    if request.param == "eager":
        monkeypatch.setattr(TorchEager, "_new_cache", fuse.wrap(TorchEager._new_cache))
        monkeypatch.setattr(TorchEager, "_run", fuse.wrap(TorchEager._run))
        return lambda: TorchEager(MODEL, n_pages=12), fuse
    monkeypatch.setattr(torch_compiled, "forward", fuse.wrap(torch_compiled.forward))
    monkeypatch.setattr(TorchCompiled, "_memory", fuse.wrap(TorchCompiled._memory))

    def make() -> TorchCompiled:
        backend = TorchCompiled(MODEL, n_pages=12)
        backend._decode = torch_compiled.forward
        return backend

    return make, fuse


def state(backend: Torch) -> tuple[Any, ...]:
    """All that its caller could see."""
    if isinstance(backend, TorchEager):
        lengths = {handle: cache.length for handle, cache in backend._sequences.items()}
    else:
        lengths = dict(backend._lengths)
        assert len(backend._keys) == len(backend._values) and set(backend._slots) == set(lengths)
    return lengths, {h: len(pages) for h, pages in backend._pages._held.items()}, backend._pages.n_free


def test_a_failed_call_changes_nothing(fused: tuple[Any, Fuse]) -> None:
    """Every call of torch in a life fails once; the call is made again, and the rows are what they were."""
    make, fuse = fused

    def life(backend: Torch) -> list[np.ndarray]:
        rows = []

        def again(function: Any, *arguments: Any) -> Any:
            before = state(backend)
            try:
                return function(*arguments)
            except torch.OutOfMemoryError:
                assert state(backend) == before
                return function(*arguments)

        def run(*chunks: tuple[int, list[int]]) -> None:
            step = [Chunk(sequence=s, token_ids=ids, want_hidden=True) for s, ids in chunks]
            for result in again(backend.run, step):
                rows.extend([result.logits, result.hidden])

        first, second = again(backend.open), again(backend.open)
        run((first, [1, 2, 3]), (second, [4]))
        run((second, [5]), (first, [6]))
        third = again(backend.fork, first, 4)
        fourth = again(backend.fork, second, 1)
        run((third, [7, 8]), (first, [9]), (fourth, [10]))
        backend.release(first)
        fifth = again(backend.open)
        run((fifth, [11] * 20), (fourth, [12]))
        run((fifth, [13]), (third, [14]), (second, [15]), (fourth, [16]))
        for sequence in (second, third, fourth, fifth):
            backend.release(sequence)
        assert state(backend) == ({}, {}, 12)
        return rows

    backend, fuse.n_calls = make(), 0
    expected, n_calls = life(backend), fuse.n_calls
    assert n_calls >= 10
    for at in range(n_calls):
        backend = make()
        fuse.n_calls, fuse.at = 0, at
        found = life(backend)
        assert fuse.n_calls > at
        fuse.at = -1
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_engine_and_backend_never_disagree_about_memory(fused: tuple[Any, Fuse]) -> None:
    """A fault in every other call: only requests of that step fail, pages are counted alike after each."""
    make, fuse = fused
    requests = [
        Generate(
            prompt_ids=tuple([*range(1, 18), i] if i % 2 else [i, i]),
            sampling=SamplingConfig(seed=i, max_new_tokens=3),
            n=1 + i % 3,
            terms=Terms(cache_salt=b"s"),
        )
        for i in range(3)
    ]

    def serve(at: int) -> dict[int, Any]:
        backend = make()
        fuse.n_calls, fuse.at = 0, at
        found = Engine(backend, limits=Limits(step_tokens=12, max_sequences=6))
        for request in requests:
            found.submit(request)
        results = {}
        while found.has_work:
            results.update((e.request_id, e.result) for e in found.step() if isinstance(e, Finished))
            assert found.scheduler.n_pages_free == backend._pages.n_free, at
        found.close()
        assert state(backend) == ({}, {}, 12), at
        return results

    expected, n_failed = serve(-1), []
    n_calls = fuse.n_calls
    for at in range(0, n_calls, 2):
        results = serve(at)
        failed = [number for number, result in results.items() if isinstance(result, Failed)]
        n_failed.append(len(failed))
        assert all("planted" in results[number].message for number in failed)
        for number in set(results) - set(failed):
            found, wanted = results[number].samples, expected[number].samples
            assert [s.token_ids for s in found] == [s.token_ids for s in wanted], at
    assert min(n_failed) >= 1


@pytest.mark.parametrize("poison", [13, 0])
def test_what_is_not_finite_stays_in_its_sequence(poison: int) -> None:
    """One token's embedding is NaN, and so are the keys and values that it leaves in the memory.

    Token 0 is also what idle rows compute.
    """
    model = GPT(CONFIG)
    with torch.no_grad():
        model.wte.weight[poison] = torch.nan
    backend, healthy = TorchCompiled(model, n_pages=12), TorchEager(model)
    backend._decode = torch_compiled.forward
    other = backend.open()
    backend.run([Chunk(sequence=other, token_ids=[4] * CONFIG.max_seq_len)])
    sick = backend.open()
    for ids in ([2, poison, 3], [5]):
        rows = backend.run([Chunk(sequence=sick, token_ids=ids)])[0].logits
        assert rows is not None and np.isnan(rows).all()
    third = backend.open()
    backend.run([Chunk(sequence=third, token_ids=[1])])  # the others idle
    backend.release(sick)
    backend.release(other)
    reference, fresh = healthy.open(), (backend.open(), backend.open())
    columns = np.arange(CONFIG.vocab_size) != poison  # the head is tied to the embedding
    for token_id in (7, 8, 9):
        expected = healthy.run([Chunk(sequence=reference, token_ids=[token_id])])[0].logits
        for sequence in fresh:
            found = backend.run([Chunk(sequence=sequence, token_ids=[token_id])])[0].logits
            assert found is not None and expected is not None
            np.testing.assert_allclose(found[:, columns], expected[:, columns], atol=1e-4)
