"""Who runs when, and who holds the memory: decided without tensors, so tested without a model."""

from __future__ import annotations

import pytest

from inference_lab import HashBackend
from wafergpt.backends.backend import Chunk
from wafergpt.errors import ConfigError
from wafergpt.inference.scheduler import PATIENCE_STEPS, Limits, Planned, Scheduler, Track


def scheduler(**options: int) -> tuple[Scheduler, HashBackend]:
    limits = Limits(step_tokens=options.pop("step_tokens", 16), max_sequences=options.pop("max_sequences", 8))
    backend = HashBackend(**options)
    return Scheduler(backend, limits), backend


def add(
    plan: Scheduler, number: int, n_tokens: int, *, priority: int = 0, salt: bytes | None = None
) -> Track:
    track = Track(
        request_id=number,
        rank=plan.rank(number, priority),
        token_ids=list(range(n_tokens)),
        rows_from=n_tokens - 1,
        salt=salt,
    )
    plan.add(track)
    return track


def step(plan: Scheduler, backend: HashBackend) -> list[Planned]:
    planned = plan.plan()
    if planned:
        backend.run([Chunk(sequence=p.handle, token_ids=p.token_ids, n_logits=p.n_rows) for p in planned])
        plan.done(planned)
    return planned


def shape(planned: list[Planned]) -> list[tuple[int, int, int]]:
    return [(item.track.request_id, item.n_tokens, item.n_rows) for item in planned]


def test_prompts_are_cut_and_mixed_with_decodes() -> None:
    plan, backend = scheduler()
    first = add(plan, 0, 5)
    assert shape(step(plan, backend)) == [(0, 5, 1)]
    plan.extend(first, 9)
    add(plan, 1, 20)
    add(plan, 2, 10)
    assert shape(step(plan, backend)) == [(0, 1, 1), (1, 15, 0)]  # the decode and 15 of a budget of 16
    plan.extend(first, 9)
    assert shape(step(plan, backend)) == [(0, 1, 1), (1, 5, 1), (2, 10, 1)]
    assert step(plan, backend) == []


def test_rows_are_asked_for_once_each() -> None:
    plan, backend = scheduler()
    track = Track(request_id=0, rank=plan.rank(0, 0), token_ids=list(range(30)), rows_from=10)
    plan.add(track)
    assert shape(step(plan, backend)) == [(0, 16, 6)]
    plan.end(add(plan, 1, 3))  # never ran
    assert shape(step(plan, backend)) == [(0, 14, 14)]


def test_the_first_in_rank_takes_memory_from_those_behind() -> None:
    plan, backend = scheduler(n_pages=4)  # 16 positions
    first, second = add(plan, 0, 7), add(plan, 1, 7)
    assert shape(step(plan, backend)) == [(0, 7, 1), (1, 7, 1)]
    for _ in range(2):
        for track in (first, second):
            plan.extend(track, 9)
        step(plan, backend)
    assert first.n_held == 9 and second.handle is None and plan.n_pages_free == 1
    while first.n_held < 16:
        plan.extend(first, 9)
        assert shape(step(plan, backend)) == [(0, 1, 1)]
    plan.end(first)
    assert shape(step(plan, backend)) == [(1, 9, 1)], "recomputed, the row asked for is the new one"


def test_priority_wins_a_bounded_head_start() -> None:
    plan, backend = scheduler(max_sequences=1)
    add(plan, 0, 4)
    late = add(plan, 1, 4, priority=1)
    assert late.rank < plan.rank(2, 0)
    assert shape(step(plan, backend)) == [(1, 4, 1)]
    plan.n_steps += PATIENCE_STEPS + 1
    assert add(plan, 3, 4, priority=1).rank > (0, 0, 0), "not before what has waited long"


def test_one_who_waits_first_is_not_overtaken_by_a_smaller_one() -> None:
    plan, backend = scheduler(n_pages=4)
    first = add(plan, 0, 12)
    step(plan, backend)
    add(plan, 1, 8)
    add(plan, 2, 2)  # would fit now
    plan.extend(first, 9)
    assert shape(step(plan, backend)) == [(0, 1, 1)]
    plan.end(first)
    assert shape(step(plan, backend)) == [(1, 8, 1), (2, 2, 1)]


def test_equal_beginnings_of_one_salt_are_computed_once() -> None:
    plan, backend = scheduler(step_tokens=64)
    first = add(plan, 0, 10, salt=b"a")
    step(plan, backend)
    add(plan, 1, 12, salt=b"a")  # while the first lives: two whole pages of four
    add(plan, 2, 12, salt=b"b")
    add(plan, 3, 12)
    add(plan, 4, 8, salt=b"a")  # its last token is needed for a row: one page
    assert shape(step(plan, backend)) == [(1, 4, 1), (2, 12, 1), (3, 12, 1), (4, 4, 1)]
    plan.end(first)
    assert backend.tokens, "kept for later"
    add(plan, 5, 9, salt=b"a")
    assert shape(step(plan, backend)) == [(5, 1, 1)]


def test_kept_beginnings_yield_to_those_who_run() -> None:
    plan, backend = scheduler(n_pages=4)
    for number in range(6):
        track = Track(
            request_id=number,
            rank=plan.rank(number, 0),
            token_ids=[number] * 9,
            rows_from=8,
            salt=b"a",
        )
        plan.add(track)
        assert shape(step(plan, backend)) == [(number, 9, 1)]
        plan.end(track)
    assert plan.n_pages_free == 1
    plan.forget_kept()
    assert plan.n_pages_free == 4 and not backend.tokens


def test_a_fork_shares_memory_or_recomputes() -> None:
    plan, backend = scheduler(n_pages=3)
    track = add(plan, 0, 6)
    step(plan, backend)
    twin, third = plan.fork(track, 1), plan.fork(track, 2)
    assert twin.handle is not None and plan.n_pages_free == 0 and third.handle is None
    for number, one in enumerate((track, twin, third)):
        plan.extend(one, number)
    assert shape(step(plan, backend)) == [(0, 1, 1), (0, 1, 1)]
    plan.end(track)
    plan.end(twin)
    assert shape(step(plan, backend)) == [(0, 7, 1)]
    assert backend.tokens[third.handle or 0] == [0, 1, 2, 3, 4, 5, 2]


@pytest.mark.parametrize(("step_tokens", "max_sequences"), [(8, 8), (8, 0)])
def test_limits_that_leave_no_room_are_refused(step_tokens: int, max_sequences: int) -> None:
    with pytest.raises(ConfigError, match="max_sequences"):
        Limits(step_tokens=step_tokens, max_sequences=max_sequences)
