"""Faults of a backend stay with the request they hit; memory that it keeps counts as used."""

from __future__ import annotations

from typing import Any

import pytest

from inference_lab import HashBackend
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import Failed, FailureKind, Generate, Generated, SamplingConfig, Terms
from wafergpt.inference.scheduler import Limits


def engine(n_pages: int) -> tuple[Engine, HashBackend]:
    backend = HashBackend(n_pages=n_pages)
    return Engine(backend, limits=Limits(step_tokens=12, max_sequences=6)), backend


def crowd() -> list[Generate]:
    """Some with equal salted beginnings, some of several samples, more than the memory holds at once."""
    return [
        Generate(
            prompt_ids=tuple([*range(2, 11), i] if i % 3 else [i, i]),
            sampling=SamplingConfig(seed=i, max_new_tokens=5),
            n=1 + i % 2,
            terms=Terms(cache_salt=b"s"),
        )
        for i in range(8)
    ]


@pytest.mark.parametrize("call", ["open", "fork", "run", "release"])
@pytest.mark.filterwarnings("error")
def test_a_fault_of_the_backend_stays_with_its_request(call: str) -> None:
    """Every call in turn fails once: the others' tokens are what they were, and no memory is lost."""
    expected = engine(n_pages=14)[0].run(crowd())
    n_calls, n_failed = 0, []
    while True:
        found, backend = engine(n_pages=14)
        original, n_seen = getattr(backend, call), 0

        def faulty(*arguments: Any, original: Any = original, at: int = n_calls) -> Any:
            nonlocal n_seen
            n_seen += 1
            if n_seen == at + 1:
                raise RuntimeError("cable cut")
            return original(*arguments)

        setattr(backend, call, faulty)
        results = found.run(crowd())
        if n_seen <= n_calls:
            break
        failed = [r for r in results if isinstance(r, Failed)]
        assert all("cable cut" in r.message and r.kind is FailureKind.ERROR for r in failed)
        pairs = zip(results, expected, strict=True)
        assert all(a == b for a, b in pairs if not isinstance(a, Failed)), n_calls
        found.close()
        assert not backend.tokens and found.scheduler.n_pages_free == 14 and not found.has_work, n_calls
        n_calls, n_failed = n_calls + 1, [*n_failed, len(failed)]
    assert n_calls >= 5
    if call != "run":  # in a step several take part
        assert max(n_failed) == (0 if call == "release" else 1)


def test_memory_that_is_never_taken_back_counts_as_used() -> None:
    """What no longer fits fails by name instead of waiting for ever."""
    found, backend = engine(n_pages=20)

    def stuck(sequence: int) -> None:
        raise RuntimeError("stuck")

    backend.release = stuck  # type: ignore[method-assign]
    request = Generate(prompt_ids=tuple(range(30)), sampling=SamplingConfig(seed=1, max_new_tokens=4))
    results = [found.run([request])[0] for _ in range(4)]
    assert [type(result) for result in results] == [Generated, Generated, Failed, Failed]
    assert "never given back" in results[2].message  # type: ignore[union-attr]
    assert found.scheduler.n_pages_free + backend.n_pages_used == 20
