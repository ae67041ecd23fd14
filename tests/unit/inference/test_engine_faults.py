"""A backend that fails, in any call, once or for ever: only the request concerned ends, no memory is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from inference_lab import HashBackend
from wafergpt.backends.backend import Chunk, ChunkResult
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Failed,
    FailureKind,
    Finished,
    Generate,
    Generated,
    NewToken,
    Request,
    Score,
    Terms,
)
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.scheduler import Limits, Scheduler

N_PAGES = 16
PLAIN = SamplingConfig(seed=1, max_new_tokens=4)


def engine(n_pages: int = N_PAGES) -> tuple[Engine, HashBackend]:
    backend = HashBackend(n_pages=n_pages)
    return Engine(backend, limits=Limits(step_tokens=12, max_sequences=6)), backend


def crowd() -> list[Request]:
    """Equal salted beginnings, several samples, beams, scores: more than the memory holds at once."""
    shared = Terms(cache_salt=b"s")
    requests: list[Request] = [
        Generate(
            prompt_ids=tuple([*range(2, 11), i] if i % 3 else [i, i]),
            sampling=SamplingConfig(seed=i, max_new_tokens=5),
            n=1 + i % 2,
            terms=shared,
        )
        for i in range(8)
    ]
    beams = SamplingConfig(temperature=0, max_new_tokens=5)
    requests.insert(2, Generate(prompt_ids=(7, 8, 9), sampling=beams, n_beams=3, terms=shared))
    requests.insert(5, Score(token_ids=tuple(range(2, 14)), n_context=6, terms=shared))
    return requests


def failing_at(function: Any, at: int) -> tuple[Any, list[int]]:
    """It raises in call number `at`, once; the list holds the number of calls."""
    n_calls = [0]

    def faulty(*arguments: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == at + 1:
            raise RuntimeError("cable cut")
        return function(*arguments)

    return faulty, n_calls


def stuck(sequence: int) -> None:
    raise RuntimeError("stuck")


def finished_in(found: Engine, n_steps: int) -> dict[int, Any]:
    events = [event for _ in range(n_steps) for event in found.step()]
    return {event.request_id: event.result for event in events if isinstance(event, Finished)}


@pytest.mark.parametrize("call", ["open", "fork", "run", "release"])
@pytest.mark.filterwarnings("error")
def test_a_fault_of_the_backend_stays_with_its_request(call: str) -> None:
    """Every call in turn fails once: the others' tokens are what they were, and no memory is lost."""
    expected = engine()[0].run(crowd())
    n_failed: list[int] = []
    while True:
        at = len(n_failed)
        found, backend = engine()
        faulty, n_calls = failing_at(getattr(backend, call), at)
        setattr(backend, call, faulty)
        results = found.run(crowd())
        if n_calls[0] <= at:
            break
        failed = [r for r in results if isinstance(r, Failed)]
        assert all("cable cut" in r.message and r.kind is FailureKind.ERROR for r in failed)
        pairs = zip(results, expected, strict=True)
        assert all(a == b for a, b in pairs if not isinstance(a, Failed)), at
        found.close()
        assert not backend.tokens and not backend.pages and not found.has_work, at
        assert found.scheduler.n_pages_free == N_PAGES, at
        n_failed.append(len(failed))
    assert len(n_failed) >= 10
    if call != "run":  # in a step several take part
        assert set(n_failed) == {0 if call == "release" else 1}


def test_a_ledger_that_forgot_a_fault_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, backend = engine()
    monkeypatch.setattr(backend, "release", failing_at(backend.release, 0)[0])

    def careless(self: Scheduler) -> None:
        for handle in list(self._leaving):
            del self._leaving[handle]
            self._pages.release(handle)
            try:
                self._memory.release(handle)
            except RuntimeError:
                continue

    monkeypatch.setattr(Scheduler, "_let_go", careless)
    found.run(crowd()[:2])
    found.close()
    assert backend.tokens and found.scheduler.n_pages_free == N_PAGES


def test_memory_that_is_never_taken_back_counts_as_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What no longer fits fails by name instead of waiting for ever; each refusal is reported once."""
    found, backend = engine(20)
    monkeypatch.setattr(backend, "release", stuck)
    request = Generate(prompt_ids=tuple(range(30)), sampling=PLAIN)
    results = [found.run([request])[0] for _ in range(4)]
    assert [type(result) for result in results] == [Generated, Generated, Failed, Failed]
    assert "never given back" in results[2].message  # type: ignore[union-attr]
    assert found.scheduler.n_pages_free + backend.n_pages_used == 20
    assert len(caplog.messages) == backend.n_handles


@pytest.mark.parametrize("n_stuck", range(1, 8))
def test_nobody_waits_for_ever_where_memory_was_lost(n_stuck: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sequences are never taken back: every request ends, with its tokens or by name."""
    expected = engine()[0].run(crowd())
    found, backend = engine()
    original, lost = backend.release, set(range(1, n_stuck + 1))
    monkeypatch.setattr(backend, "release", lambda s: stuck(s) if s in lost else original(s))
    numbers = [found.submit(request) for request in crowd()]
    results = finished_in(found, 500)
    assert sorted(results) == numbers
    for number, result in zip(numbers, expected, strict=True):
        assert results[number] == result or "never given back" in results[number].message
    lost.clear()
    found.close()
    assert not backend.tokens and found.scheduler.n_pages_free == N_PAGES


def test_one_that_outgrows_what_is_left_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs already, alone, when the memory that it would need turns out to be lost."""
    found, backend = engine()
    lost = Generate(prompt_ids=tuple(range(40)), sampling=SamplingConfig(seed=1, max_new_tokens=2))
    growing = Generate(prompt_ids=(1,), sampling=SamplingConfig(seed=1, max_new_tokens=40))
    numbers = [found.submit(request) for request in (growing, lost)]
    with monkeypatch.context() as patch:
        patch.setattr(backend, "release", stuck)
        results = finished_in(found, 100)
    assert isinstance(results[numbers[1]], Generated)
    assert "never given back" in results[numbers[0]].message
    found.close()
    assert not backend.tokens and found.scheduler.n_pages_free == N_PAGES


def test_an_interrupted_step_ends_its_requests_and_the_engine_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, backend = engine()
    request = Generate(prompt_ids=(1, 2), sampling=PLAIN)
    first = found.submit(request)
    found.step()
    original = backend.run

    def interrupted(chunks: Sequence[Chunk]) -> list[ChunkResult]:
        original(chunks)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.step()
    [end] = found.step()
    assert isinstance(end, Finished) and end.request_id == first and isinstance(end.result, Failed)
    assert not backend.tokens
    assert found.run([request]) == engine()[0].run([request])


@pytest.mark.parametrize(
    ("results", "message"),
    [([], "a step failed: zip"), ([ChunkResult(logits=None, hidden=None)], "the backend gave no rows")],
)
def test_a_backend_that_forgets_rows_fails_its_requests(
    results: list[ChunkResult], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, backend = engine()
    monkeypatch.setattr(backend, "run", lambda _: results)
    [failed] = found.run([Generate(prompt_ids=(1, 2), sampling=PLAIN)])
    assert isinstance(failed, Failed) and message in failed.message
    assert not backend.tokens and not found.has_work


def test_a_fault_is_news_for_its_subscriber_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found, backend = engine()
    monkeypatch.setattr(backend, "fork", failing_at(backend.fork, 0)[0])
    good = found.submit(Generate(prompt_ids=(3,), sampling=PLAIN))
    events = list(found.stream(Generate(prompt_ids=(1, 2), sampling=PLAIN, n=2)))
    assert len(events) == 1 and isinstance(events[0], Finished) and isinstance(events[0].result, Failed)
    rest = [event for _ in range(6) for event in found.step()]
    assert [type(event) for event in rest] == [NewToken] * 4 + [Finished]
    assert {event.request_id for event in rest} == {good}
