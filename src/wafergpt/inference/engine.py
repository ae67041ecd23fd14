"""Requests in, events out, step by step: plan, run on a backend, let every request take its rows (no torch).

Token ids only. A step that fails fails the requests that took part in it; a request whose own logits, mask or
sampling fail fails alone. Every request ends with exactly one `Finished`.

Any thread may call anything: steps happen one after the other, and whoever waits for a request of its own
(`run`, `stream`, a `Subscription`) runs the next step for all when none has brought it news.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np

from wafergpt.backends.backend import Backend, Chunk, ChunkResult
from wafergpt.config import require
from wafergpt.errors import WaferGPTError
from wafergpt.inference.beam import BeamJob
from wafergpt.inference.jobs import HiddenJob, Job, Rows, SampleJob, ScoreJob
from wafergpt.inference.request import (
    Event,
    Failed,
    FailureKind,
    Finished,
    Generate,
    Hidden,
    NewToken,
    Request,
    Result,
    Score,
)
from wafergpt.inference.scheduler import Limits, Planned, Scheduler


class Engine:
    """Serves many requests at once from one backend."""

    def __init__(
        self,
        backend: Backend,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds; deadlines are measured with it."""
        self.backend = backend
        self._scheduler = Scheduler(backend, limits)
        self._clock = clock
        self._jobs: dict[int, Job] = {}  # started, not ended
        self._deadlines: dict[int, float] = {}  # by `clock`
        self._inbox: deque[Callable[[], None]] = deque()  # what other threads asked for
        self._events: list[Event] = []
        self._open: set[int] = set()  # submitted, not ended
        self._next_id = 0
        self._lock = threading.Lock()  # of the counter and of `_boxes`
        self._boxes: dict[int, deque[Event]] = {}  # news of requests that somebody subscribed to
        self._stepping = threading.Lock()

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended yet."""
        return bool(self._open)

    @property
    def scheduler(self) -> Scheduler:
        """For measurements: pages, steps."""
        return self._scheduler

    def submit(self, request: Request) -> int:
        """Queue a request; its number. `step` returns its events.

        Raises ConfigError for one that can never be served here.
        """
        self._check(request)
        return self._submit(request, None)

    def subscribe(self, requests: Sequence[Request]) -> Subscription:
        """Queue requests whose events come to the caller alone. Raises as `submit`, for all or none."""
        for request in requests:
            self._check(request)
        box: deque[Event] = deque()
        return Subscription(self, [self._submit(request, box) for request in requests], box)

    def _submit(self, request: Request, box: deque[Event] | None) -> int:
        with self._lock:
            request_id = self._next_id
            self._next_id += 1
            self._open.add(request_id)
            if box is not None:
                self._boxes[request_id] = box
        deadline_s = request.terms.deadline_s
        deadline = None if deadline_s is None else self._clock() + deadline_s
        self._inbox.append(lambda: self._start(request_id, request, deadline))
        return request_id

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; without effect on one that has ended."""
        self._inbox.append(lambda: self._fail(request_id, FailureKind.CANCELLED, "the request was cancelled"))

    def step(self) -> list[Event]:
        """One step over whatever is most due; the events of requests that `submit` queued.

        Does nothing without work.
        """
        with self._stepping:
            self._step()
            events, self._events = self._events, []
        return events

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Serve these (and what else was submitted) to the end; results in their order. `submit`'s errors."""
        with self.subscribe(requests) as subscription:
            results = {e.request_id: e.result for e in subscription if isinstance(e, Finished)}
        return [results[request_id] for request_id in subscription.request_ids]

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of one request; closing the iterator early cancels it. Raises as `submit`."""
        return self._stream(self.subscribe([request]))

    def next_of(self, box: deque[Event]) -> Event | None:
        """For `Subscription`: its next event, after one more step if there is none; None if still none."""
        with self._stepping:
            if not box:
                self._step()
            return box.popleft() if box else None

    def abandon(self, request_ids: set[int]) -> None:
        """For `Subscription`: cancel these and drop their events."""
        with self._stepping:
            for request_id in request_ids:
                self.cancel(request_id)
            self._empty_inbox()
            for request_id in request_ids:
                self._boxes.pop(request_id, None)

    def close(self) -> None:
        """Cancel everything and give all memory back to the backend."""
        with self._stepping:
            for request_id in list(self._open):
                self.cancel(request_id)
            self._empty_inbox()
            self._events.clear()
            self._scheduler.forget_kept()

    def _stream(self, subscription: Subscription) -> Iterator[Event]:
        with subscription:
            yield from subscription

    def _step(self) -> None:
        self._empty_inbox()
        self._expire()
        planned = self._scheduler.plan() if self._jobs else []
        for track, error in self._scheduler.take_faults():
            message = f"its memory failed: {error}"
            self._fail(track.request_id, FailureKind.ERROR, message, error, keep=False)
        planned = [item for item in planned if item.track.request_id in self._jobs]
        if planned:
            self._run(planned)

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._boxes.get(event.request_id, self._events).append(event)

    def _check(self, request: Request) -> None:
        """Raise ConfigError for a request that this backend could not serve even alone."""
        window, vocab_size = self.backend.max_seq_len, self.backend.vocab_size
        if isinstance(request, Generate):
            ids, n_held = request.prompt_ids, len(request.prompt_ids)
            require(
                n_held < window,
                f"the prompt has {n_held} tokens, which leaves no room in the context window of {window}; "
                f"shorten it to {window - 1} or fewer",
            )
            n_held = min(n_held + request.sampling.max_new_tokens - 1, window)
            n_choices = request.n_choices
            require(
                n_choices is None or n_choices <= vocab_size,
                f"n_choices = {n_choices} is more than the vocabulary of {vocab_size}",
            )
            _check_token_ids(request, vocab_size if n_choices is None else n_choices)
        elif isinstance(request, Score):
            ids, n_held = request.token_ids, len(request.token_ids) - 1
            require(n_held <= window, f"a window to score holds 2 to {window + 1} tokens, not {n_held + 1}")
        else:
            ids, n_held = request.token_ids, len(request.token_ids)
            require(n_held <= window, f"{n_held} tokens do not fit the context window of {window}")
        lowest, highest = min(ids), max(ids)
        wrong = lowest if lowest < 0 else highest
        require(
            lowest >= 0 and highest < vocab_size,
            f"token id {wrong} is outside the vocabulary of {vocab_size}",
        )
        require(
            self._scheduler.fits(n_held),
            f"the request may need {n_held} positions, more than the key-value memory has",
        )

    def _start(self, request_id: int, request: Request, deadline: float | None) -> None:
        if deadline is not None:
            self._deadlines[request_id] = deadline
        job: Job
        if isinstance(request, Generate):
            room = self.backend.max_seq_len - len(request.prompt_ids)
            kind = SampleJob if request.n_beams == 1 else BeamJob
            job = kind(request_id, request, self._scheduler, room)
        elif isinstance(request, Score):
            job = ScoreJob(request_id, request, self._scheduler)
        else:
            assert isinstance(request, Hidden)
            job = HiddenJob(request_id, request, self._scheduler)
        self._jobs[request_id] = job
        job.start()

    def _expire(self) -> None:
        if self._deadlines:
            now = self._clock()
            for request_id in [i for i, deadline in self._deadlines.items() if deadline <= now]:
                self._fail(request_id, FailureKind.DEADLINE, "the request was not ready by its deadline")

    def _run(self, planned: list[Planned]) -> None:
        chunks = [self._chunk(item) for item in planned]
        try:
            pairs = list(zip(planned, self.backend.run(chunks), strict=True))
        except BaseException as error:  # whatever a backend raises must not end the others' requests
            cause = error if isinstance(error, Exception) else None
            for request_id in {item.track.request_id: None for item in planned}:
                self._fail(request_id, FailureKind.ERROR, f"a step failed: {error}", cause, keep=False)
            if cause is None:  # Ctrl-C, say
                raise
            return
        self._scheduler.done(planned)
        for item, result in pairs:
            job = self._jobs.get(item.track.request_id)
            if job is not None:  # it may have failed a moment ago, by another of its tracks
                self._take(job, item, result)

    def _take(self, job: Job, item: Planned, result: ChunkResult) -> None:
        rows: Rows = np.empty((0, 0), np.float32)
        try:
            if item.n_rows:
                found = result.hidden if job.wants_hidden else result.logits
                assert found is not None, "the backend gave no rows"
                rows = found[-item.n_rows :]
            new_tokens: list[NewToken] = job.take(item, rows)
        except (
            Exception
        ) as error:  # mask and watch are the caller's code; non-finite logits are this request's alone
            self._fail(job.request_id, FailureKind.ERROR, _named(error), error)
            return
        self._emit(new_tokens)
        self._finish_if_done(job)

    def _chunk(self, item: Planned) -> Chunk:
        hidden = self._jobs[item.track.request_id].wants_hidden
        return Chunk(
            sequence=item.handle,
            token_ids=item.token_ids,
            n_logits=0 if hidden else item.n_rows,
            want_hidden=hidden and item.n_rows > 0,
        )

    def _finish_if_done(self, job: Job) -> None:
        if job.result is not None:
            self._end(job.request_id, job.result)

    def _fail(
        self,
        request_id: int,
        kind: FailureKind,
        message: str,
        error: Exception | None = None,
        *,
        keep: bool = True,
    ) -> None:
        job = self._jobs.get(request_id)
        if request_id not in self._open:
            return
        if job is not None:
            job.give_up(keep=keep)
        self._end(request_id, Failed(kind=kind, message=message, error=error))

    def _end(self, request_id: int, result: Result) -> None:
        self._jobs.pop(request_id, None)
        self._deadlines.pop(request_id, None)
        self._open.discard(request_id)
        self._emit([Finished(request_id=request_id, result=result)])
        self._boxes.pop(request_id, None)


class Subscription:
    """Some requests and their events as they happen: an iterator that ends with the last one.

    Leaving it as a context manager cancels what has not ended.
    """

    def __init__(self, engine: Engine, request_ids: Sequence[int], box: deque[Event]) -> None:
        self.request_ids = tuple(request_ids)
        self._engine, self._box = engine, box
        self._going = set(request_ids)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._going:
            self._engine.abandon(self._going)

    def __iter__(self) -> Iterator[Event]:
        while self._going:
            event = self._engine.next_of(self._box)
            if event is None:
                continue
            if isinstance(event, Finished):
                self._going.discard(event.request_id)
            yield event


def _named(error: BaseException) -> str:
    """Our own errors say what is wrong; of others the type helps."""
    return str(error) if isinstance(error, WaferGPTError) else f"{type(error).__name__}: {error}"


def _check_token_ids(request: Generate, n_choices: int) -> None:
    named = {"logit_bias": request.sampling.logit_bias, "stop_token_ids": request.sampling.stop_token_ids}
    for name, ids in named.items():
        for token_id in ids:
            require(token_id < n_choices, f"{name}: token id {token_id} is not one of {n_choices}")
