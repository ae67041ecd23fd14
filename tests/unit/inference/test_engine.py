"""The engine against the plain definition: what each request gives what it gives alone, by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inference_lab import HashBackend, row_after
from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Failed,
    FailureKind,
    Finished,
    FinishReason,
    Generate,
    Generated,
    Hidden,
    HiddenStates,
    NewToken,
    SamplingConfig,
    Score,
    Scored,
    Terms,
)
from wafergpt.inference.sampling import Sampler
from wafergpt.inference.scheduler import Limits

V = 50
SMALL = Limits(step_tokens=12, max_sequences=6)


def engine(**options: Any) -> tuple[Engine, HashBackend]:
    clock = options.pop("clock", None)
    backend = HashBackend(vocab_size=V, **options)
    return Engine(backend, limits=SMALL, **({} if clock is None else {"clock": clock})), backend


def log_p(prefix: Sequence[int]) -> np.ndarray:
    row = row_after(prefix, V).astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def by_hand(prompt: Sequence[int], config: SamplingConfig, sample: int = 0, room: int = 64) -> list[int]:
    """The plain loop: a row for all tokens so far, one choice."""
    sampler, ids = Sampler(config, prompt, sample=sample), list(prompt)
    for _ in range(min(config.max_new_tokens, room - len(prompt))):
        ids.append(sampler.choose(row_after(ids, V)))
        if ids[-1] in config.stop_token_ids:
            break
    return ids[len(prompt) :]


def only(result: object) -> tuple[int, ...]:
    assert isinstance(result, Generated) and len(result.samples) == 1
    return result.samples[0].token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"seed": 5},
        {"seed": 5, "top_k": 5, "temperature": 2.0},
        {"seed": 1, "top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.5},
        {"seed": 1, "frequency_penalty": 2.0, "presence_penalty": -1.0, "logit_bias": {4: 3.0}},
    ],
)
def test_generates_what_the_plain_loop_does(options: dict[str, Any]) -> None:
    config = SamplingConfig(**options, max_new_tokens=20)
    found, backend = engine()
    assert list(only(found.run([Generate(prompt_ids=(1, 2, 3), sampling=config)])[0])) == by_hand(
        (1, 2, 3), config
    )
    assert not backend.tokens


def test_samples_score_and_prompt_scores() -> None:
    config = SamplingConfig(seed=9, max_new_tokens=6)
    prompt = tuple(range(15))
    request = Generate(prompt_ids=prompt, sampling=config, n=4, n_top=3, n_prompt_top=1)
    result = engine()[0].run([request])[0]
    assert isinstance(result, Generated)
    assert [s.index for s in result.samples] == [0, 1, 2, 3]
    assert len({s.token_ids for s in result.samples}) == 4
    for sample in result.samples:
        assert list(sample.token_ids) == by_hand(prompt, config, sample.index)
        for i, score in enumerate(sample.scores):
            expected = log_p((*prompt, *sample.token_ids[:i]))
            assert score.log_probability == pytest.approx(expected[score.token_id], abs=1e-5)
            assert [token_id for token_id, _ in score.top] == np.argsort(-expected)[:3].tolist()
        assert sample.total_log_probability == sum(s.log_probability for s in sample.scores)
    assert [s.token_id for s in result.prompt_scores] == list(prompt[1:])
    for i, score in enumerate(result.prompt_scores):
        assert score.log_probability == pytest.approx(log_p(prompt[: i + 1])[prompt[i + 1]], abs=1e-5)


def test_best_of_keeps_the_likeliest() -> None:
    config = SamplingConfig(seed=2, max_new_tokens=5)
    result = engine()[0].run([Generate(prompt_ids=(7,), sampling=config, n=2, best_of=6)])[0]
    assert isinstance(result, Generated)
    totals = []
    for sample in range(6):
        ids = [7, *by_hand((7,), config, sample)]
        totals.append(sum(log_p(ids[:i])[ids[i]] for i in range(1, len(ids))))
    assert [s.index for s in result.samples] == np.argsort([-t for t in totals])[:2].tolist()
    assert result.samples[0].total_log_probability == pytest.approx(max(totals), abs=1e-4)


def test_score_and_hidden() -> None:
    ids = tuple(np.random.default_rng(0).integers(0, V, 40).tolist())
    scored, last, states = engine()[0].run(
        [
            Score(token_ids=ids, n_context=30, n_top=2),
            Hidden(token_ids=ids),
            Hidden(token_ids=ids, last_only=False),
        ]
    )
    assert isinstance(scored, Scored) and len(scored.scores) == 10
    for i, score in enumerate(scored.scores, 30):
        assert score.log_probability == pytest.approx(log_p(ids[:i])[ids[i]], abs=1e-5)
    assert scored.total_log_probability == sum(s.log_probability for s in scored.scores)
    assert isinstance(last, HiddenStates) and isinstance(states, HiddenStates)
    assert np.array_equal(states.states, np.stack([row_after(ids[: i + 1], 4) for i in range(40)]))
    assert np.array_equal(last.states, states.states[-1:])


def test_endings() -> None:
    plain = by_hand((1,), SamplingConfig(seed=3, max_new_tokens=30))
    stop = plain[7]
    at = plain.index(stop)
    config = SamplingConfig(seed=3, max_new_tokens=30, stop_token_ids=(stop,))
    window = 64
    results = engine()[0].run(
        [
            Generate(prompt_ids=(1,), sampling=config),
            Generate(
                prompt_ids=(1,), sampling=SamplingConfig(seed=3, max_new_tokens=30), end_of_text_id=stop
            ),
            Generate(prompt_ids=(1,) * (window - 2), sampling=SamplingConfig(seed=3)),
            Generate(prompt_ids=(1,), sampling=SamplingConfig(seed=3, max_new_tokens=2)),
        ]
    )
    ends = [(s.finish_reason, s.window_full, len(s.token_ids)) for r in results for s in r.samples]
    assert ends == [
        (FinishReason.STOP, False, at + 1),
        (FinishReason.END_OF_TEXT, False, at + 1),
        (FinishReason.LENGTH, True, 2),
        (FinishReason.LENGTH, False, 2),
    ]


def test_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    config = SamplingConfig(seed=0, temperature=5.0, max_new_tokens=50)
    ids = only(engine()[0].run([Generate(prompt_ids=(1,), sampling=config, n_choices=10)])[0])
    assert max(ids) < 10


def test_a_failing_step_fails_its_own_requests_and_nothing_else() -> None:
    found, backend = engine()
    config = SamplingConfig(seed=1, max_new_tokens=10)
    before = found.submit(Generate(prompt_ids=(1, 2), sampling=config))
    events = [event for _ in range(3) for event in found.step()]
    backend.failing = {49}
    victim = found.submit(Generate(prompt_ids=(49,) * 3, sampling=config))
    events += found.step()
    backend.failing = set()
    after = found.submit(Generate(prompt_ids=(3, 4), sampling=config))
    while found.has_work:
        events += found.step()
    results = {e.request_id: e.result for e in events if isinstance(e, Finished)}
    for number in (before, victim):  # they shared the step
        assert isinstance(results[number], Failed)
        assert "a step failed: a planted fault" in results[number].message
        assert results[number].kind is FailureKind.ERROR
    assert list(only(results[after])) == by_hand((3, 4), config)
    assert not backend.tokens


def test_a_mask_that_fails_fails_alone() -> None:
    found, backend = engine()

    def faulty(new_ids: Sequence[int]) -> np.ndarray:
        if len(new_ids) == 2:
            raise KeyError("grammar")
        return np.ones(V, bool)

    config = SamplingConfig(seed=1, max_new_tokens=6)
    bad, good = found.run(
        [
            Generate(prompt_ids=(1,), sampling=config, mask=faulty, n=2),
            Generate(prompt_ids=(2,), sampling=config),
        ]
    )
    assert isinstance(bad, Failed) and bad.message == "KeyError: 'grammar'"
    assert list(only(good)) == by_hand((2,), config)
    assert not backend.tokens


def test_logits_that_are_not_finite_fail_their_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found, backend = engine()
    run = backend.run

    def sick(chunks: Any) -> Any:
        results = run(chunks)
        for chunk, result in zip(chunks, results, strict=True):
            if 13 in chunk.token_ids:
                result.logits[:, 3] = np.nan
        return results

    monkeypatch.setattr(backend, "run", sick)
    config = SamplingConfig(temperature=0, max_new_tokens=1)
    generated, scored, good = found.run(
        [
            Generate(prompt_ids=(13,), sampling=config),
            Score(token_ids=(13, 1, 2)),
            Generate(prompt_ids=(2,), sampling=config),
        ]
    )
    for bad in (generated, scored):
        assert isinstance(bad, Failed) and isinstance(bad.error, NonFiniteError)
    assert isinstance(good, Generated)


def test_cancellation_and_deadlines() -> None:
    now = [0.0]
    found, backend = engine(clock=lambda: now[0])
    config = SamplingConfig(seed=1, max_new_tokens=50)
    gone, late, fine = (
        found.submit(Generate(prompt_ids=(1, 2), sampling=config, terms=terms))
        for terms in (Terms(), Terms(deadline_s=5.0), Terms(deadline_s=100.0))
    )
    events = found.step()
    assert [e.request_id for e in events] == [gone, late, fine]
    found.cancel(gone)
    now[0] = 5.0
    events = found.step()
    assert [(e.request_id, e.result.kind) for e in events if isinstance(e, Finished)] == [
        (gone, FailureKind.CANCELLED),
        (late, FailureKind.DEADLINE),
    ]
    found.cancel(gone)
    results = []
    while found.has_work:
        results += [e for e in found.step() if isinstance(e, Finished)]
    assert [e.request_id for e in results] == [fine]
    assert not backend.tokens and found.step() == []


def test_leaving_a_stream_early_frees_its_memory() -> None:
    found, backend = engine()
    events = found.stream(Generate(prompt_ids=(1, 2)))
    assert isinstance(next(events), NewToken) and backend.tokens
    events.close()  # type: ignore[attr-defined]
    assert not backend.tokens and not found.has_work


def test_a_watched_sample_ends_and_the_others_go_on() -> None:
    """Each has a watch of its own, which may end it with any token or fail its request."""
    found, backend = engine()
    config, lengths = SamplingConfig(seed=1, max_new_tokens=6), iter((2, 9, 2, 9))

    def watch() -> Callable[[int], bool]:
        left = [None] * next(lengths)
        return lambda _: left.pop() is None and not left

    request = Generate(prompt_ids=(1, 2), sampling=config, n=2, watch=watch)
    failing = replace(request, watch=lambda: lambda _: bool(1 // 0))
    first, failed, second = found.run([request, failing, request])
    assert isinstance(first, Generated) and first == second
    assert isinstance(failed, Failed) and "ZeroDivisionError" in failed.message
    ends = [(s.token_ids, s.finish_reason) for s in first.samples]
    assert ends == [
        (tuple(by_hand((1, 2), config)[:2]), FinishReason.STOP),
        (tuple(by_hand((1, 2), config, 1)), FinishReason.LENGTH),
    ]
    assert not backend.tokens


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Generate(prompt_ids=(0,) * 64), "leaves no room in the context window of 64; shorten it to 63"),
        (Generate(prompt_ids=(50,)), "token id 50 is outside the vocabulary of 50"),
        (Generate(prompt_ids=(-1, 3)), "token id -1"),
        (Generate(prompt_ids=(1,), n_choices=51), "n_choices = 51"),
        (Generate(prompt_ids=(1,), sampling=SamplingConfig(logit_bias={50: 1.0})), "logit_bias: token id 50"),
        (
            Generate(prompt_ids=(1,), sampling=SamplingConfig(stop_token_ids=(50,))),
            "stop_token_ids: token id 50",
        ),
        (Score(token_ids=(0,) * 66), "holds 2 to 65 tokens, not 66"),
        (Hidden(token_ids=(0,) * 65), "65 tokens do not fit the context window of 64"),
        (Generate(prompt_ids=(1,) * 30), "may need 64 positions, more than the key-value memory has"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(request_: Any, message: str) -> None:
    found, backend = engine(n_pages=15)
    with pytest.raises(ConfigError, match=message):
        found.run([Generate(prompt_ids=(1,), sampling=SamplingConfig(max_new_tokens=2)), request_])
    assert not found.has_work and not backend.steps


def test_others_may_submit_from_threads() -> None:
    found, backend = engine(n_pages=30)
    config = SamplingConfig(seed=4, max_new_tokens=8)
    numbers: dict[int, int] = {}

    def submit(token_id: int) -> None:
        numbers[token_id] = found.submit(Generate(prompt_ids=(token_id,), sampling=config))

    threads = [threading.Thread(target=submit, args=(i,)) for i in range(40)]
    results = {}
    for thread in threads:
        thread.start()
        results |= {e.request_id: e.result for e in found.step() if isinstance(e, Finished)}
    for thread in threads:
        thread.join()
    while found.has_work:
        results |= {e.request_id: e.result for e in found.step() if isinstance(e, Finished)}
    for token_id, number in numbers.items():
        assert list(only(results[number])) == by_hand((token_id,), config)
    assert not backend.tokens


def test_closing_gives_everything_back() -> None:
    found, backend = engine()
    salted = Terms(cache_salt=b"x")
    found.run([Generate(prompt_ids=tuple(range(20)), terms=salted)])
    assert backend.tokens, "kept for the next of this salt"
    n_run = backend.n_run
    config = SamplingConfig(seed=1, max_new_tokens=4)
    again = found.run([Generate(prompt_ids=tuple(range(20)), sampling=config, terms=salted)])[0]
    assert backend.n_run - n_run == 4 + 3, "16 of 20 positions were there"
    assert list(only(again)) == by_hand(range(20), config)
    found.submit(Generate(prompt_ids=(1,)))
    found.step()
    found.close()
    assert not backend.tokens and not found.has_work and found.scheduler.n_pages_free == 64


def tokens_of(events: Iterable[Any]) -> tuple[int, ...]:
    return tuple(event.token_id for event in events if isinstance(event, NewToken))


def test_streams_and_runs_within_each_other_lose_nothing() -> None:
    found, backend = engine()
    config = SamplingConfig(seed=3, max_new_tokens=12)
    submitted = found.submit(Generate(prompt_ids=(9, 9), sampling=config))
    outer, inner = [], []
    for event in found.stream(Generate(prompt_ids=(1, 2), sampling=config)):
        outer.append(event)
        inner.append(only(found.run([Generate(prompt_ids=(3,), sampling=config)])[0]))
    assert tokens_of(outer) == tuple(by_hand((1, 2), config))
    assert set(inner) == {tuple(by_hand((3,), config))}
    assert tokens_of(found.step()) == tuple(by_hand((9, 9), config)), "the submitter's events wait for it"
    assert not found.has_work and submitted == 0
    found.close()
    assert not backend.tokens


def test_many_threads_share_steps() -> None:
    found, backend = engine()
    config, wrong = SamplingConfig(seed=3, max_new_tokens=12), []

    def use(first: int) -> None:
        for i in range(5):
            prompt = (first, i)
            if tokens_of(found.stream(Generate(prompt_ids=prompt, sampling=config))) != tuple(
                by_hand(prompt, config)
            ):
                wrong.append(prompt)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    found.close()
    assert not backend.tokens
