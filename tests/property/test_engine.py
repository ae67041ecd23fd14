"""Whatever is asked of it in whatever order and memory: everyone is served, once, and all is given back."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_lab import HashBackend, row_after
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Failed,
    Finished,
    Generate,
    Generated,
    Hidden,
    HiddenStates,
    NewToken,
    Request,
    SamplingConfig,
    Score,
    Terms,
)
from wafergpt.inference.scheduler import Limits, Scheduler

V, WINDOW = 12, 24
FEW_IDS = st.integers(0, 2)  # so that beginnings are often equal

terms = st.builds(Terms, priority=st.integers(-10, 10), cache_salt=st.sampled_from([None, None, b"a", b"b"]))
prompts = st.lists(FEW_IDS, min_size=1, max_size=WINDOW - 1).map(tuple)
sampling = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
    max_new_tokens=st.integers(1, 10),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    stop_token_ids=st.sampled_from([(), (5,)]),
)
greedy = st.builds(
    SamplingConfig,
    temperature=st.just(0.0),
    max_new_tokens=st.integers(1, 6),
    stop_token_ids=st.sampled_from([(), (5,), (5, 6)]),
)
generates = st.builds(
    Generate,
    prompt_ids=prompts,
    sampling=sampling,
    n=st.integers(1, 3),
    best_of=st.sampled_from([None, None, 3]),
    n_prompt_top=st.sampled_from([None, 0]),
    terms=terms,
)
beams = st.builds(
    Generate, prompt_ids=prompts, sampling=greedy, n=st.integers(1, 2), n_beams=st.integers(2, 3), terms=terms
)
scores = st.lists(FEW_IDS, min_size=2, max_size=WINDOW + 1).flatmap(
    lambda ids: st.builds(
        Score, token_ids=st.just(tuple(ids)), n_context=st.integers(1, len(ids) - 1), terms=terms
    )
)
hiddens = st.builds(
    Hidden,
    token_ids=st.lists(FEW_IDS, min_size=1, max_size=WINDOW).map(tuple),
    last_only=st.booleans(),
    terms=terms,
)
requests = st.one_of(generates, generates, beams, scores, hiddens)


def serve(engine: Engine, arrivals: list[tuple[int, Request]], cancelled: dict[int, int]) -> list[Any]:
    """Results by order of arrival; `arrivals`: (step, request); `cancelled`: arrival number -> step."""
    numbers: list[int] = []
    results: dict[int, Any] = {}
    todo = sorted(arrivals, key=lambda a: a[0])
    n_steps = 0
    while len(numbers) < len(todo) or engine.has_work:
        while len(numbers) < len(todo) and todo[len(numbers)][0] <= n_steps:
            numbers.append(engine.submit(todo[len(numbers)][1]))
        for number, at in cancelled.items():
            if at == n_steps and number < len(numbers):
                engine.cancel(numbers[number])
        for event in engine.step():
            assert event.request_id not in results, "an event after the last"
            if isinstance(event, Finished):
                results[event.request_id] = event.result
            else:
                assert isinstance(event, NewToken)
        n_steps += 1
        assert n_steps < 5000, "someone starves"
    return [results[number] for number in numbers]


def alone(request: Request) -> Any:
    return Engine(HashBackend(vocab_size=V, max_seq_len=WINDOW, n_pages=512)).run([request])[0]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, HiddenStates):
        return isinstance(found, HiddenStates) and np.array_equal(found.states, expected.states)
    return bool(found == expected)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 12), requests), min_size=1, max_size=10),
    st.integers(6, 40),
    st.integers(1, 6),
    st.integers(1, 12),
    st.dictionaries(st.integers(0, 9), st.integers(0, 15), max_size=2),
)
def test_everyone_is_served_once_and_as_if_alone(
    arrivals: list[tuple[int, Request]],
    n_pages: int,
    max_sequences: int,
    extra_tokens: int,
    cancelled: dict[int, int],
) -> None:
    """Pages from the fewest that hold one window: memory runs short all the time."""
    backend = HashBackend(vocab_size=V, max_seq_len=WINDOW, n_pages=n_pages)
    limits = Limits(step_tokens=max_sequences + extra_tokens, max_sequences=max_sequences)
    engine = Engine(backend, limits=limits)
    results = serve(engine, arrivals, cancelled)
    for number, (_, request) in enumerate(sorted(arrivals, key=lambda a: a[0])):
        if isinstance(results[number], Failed):
            assert number in cancelled
        else:
            assert same(results[number], alone(request)), request
    assert backend.n_pages_peak <= n_pages
    assert all(len(step) <= max_sequences for step in backend.steps)
    assert all(sum(len(c.token_ids) for c in step) <= limits.step_tokens for step in backend.steps)
    engine.close()
    assert engine.scheduler.n_pages_free == n_pages and not backend.tokens


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), requests), min_size=1, max_size=6), st.integers(6, 20))
def test_the_same_arrivals_make_the_same_steps(arrivals: list[tuple[int, Request]], n_pages: int) -> None:
    steps = []
    for _ in range(2):
        backend = HashBackend(vocab_size=V, max_seq_len=WINDOW, n_pages=n_pages)
        serve(Engine(backend, limits=Limits(step_tokens=9, max_sequences=4)), arrivals, {})
        steps.append(backend.steps)
    assert steps[0] == steps[1]


def log_p(ids: tuple[int, ...]) -> np.ndarray:
    row = row_after(ids, V).astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(prompts, st.integers(1, 3), st.sampled_from([0.0, 1.0, 2.0]))
def test_beams_as_wide_as_the_tree_find_the_best(prompt: tuple[int, ...], n_new: int, penalty: float) -> None:
    """With a beam for every node, beam search is exhaustive; 12 tokens, of which 8 are masked out."""
    mask = np.arange(V) < 4
    n_new = min(n_new, WINDOW - len(prompt))
    request = Generate(
        prompt_ids=prompt,
        sampling=SamplingConfig(temperature=0, max_new_tokens=n_new, stop_token_ids=(3,)),
        n_beams=32,
        n=2,
        length_penalty=penalty,
        mask=lambda _: mask,
    )

    def walk(new: tuple[int, ...], total: float) -> list[tuple[float, tuple[int, ...]]]:
        if new and (new[-1] == 3 or len(new) == n_new):
            return [(total / len(new) ** penalty, new)]
        row = np.where(mask, row_after((*prompt, *new), V).astype(np.float64), -np.inf)
        row -= row.max() + np.log(np.exp(row - row.max()).sum())
        return [leaf for i in range(4) for leaf in walk((*new, i), total + row[i])]

    expected = sorted(walk((), 0.0), reverse=True)[:2]
    found = alone(request)
    assert isinstance(found, Generated)
    assert [s.token_ids for s in found.samples] == [ids for _, ids in expected]
    for sample, (worth, _) in zip(found.samples, expected, strict=True):
        assert sample.total_log_probability is not None
        assert abs(sample.total_log_probability / len(sample.token_ids) ** penalty - worth) < 1e-5


def test_the_checks_can_fail(monkeypatch: Any) -> None:
    """A draw that depends on how many were drawn before, memory that is never counted: both are seen."""
    request = Generate(prompt_ids=(1, 2), sampling=SamplingConfig(seed=1, max_new_tokens=10))
    expected = alone(request)
    arrivals: list[tuple[int, Request]] = [(0, request)] * 4
    n_draws = [0]

    def stateful(seed: int, sample: int, position: int) -> float:
        n_draws[0] += 1
        return float(np.random.default_rng(n_draws[0]).random())

    with monkeypatch.context() as patch:
        patch.setattr("wafergpt.inference.sampling.uniform", stateful)
        engine = Engine(HashBackend(vocab_size=V, max_seq_len=WINDOW))
        assert any(not same(found, expected) for found in serve(engine, arrivals, {}))
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_make_room", lambda *_: True)
        engine = Engine(HashBackend(vocab_size=V, max_seq_len=WINDOW, n_pages=6))
        try:
            found = serve(engine, arrivals, {})
        except Exception:
            return
        assert any(isinstance(result, Failed) for result in found)
