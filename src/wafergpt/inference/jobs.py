"""Requests on their way: what each does with the rows of logits that a step gave it (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import NonFiniteError
from wafergpt.inference.request import (
    FinishReason,
    Generate,
    Generated,
    Hidden,
    HiddenStates,
    NewToken,
    Result,
    Sample,
    Score,
    Scored,
    Terms,
    TokenScore,
)
from wafergpt.inference.sampling import Sampler, fresh_seed, guided, most_likely
from wafergpt.inference.scheduler import Planned, Scheduler, Track

Rows = NDArray[np.float32]  # [N, V] logits, or [N, D] hidden states


class Job(Protocol):
    """One request being served."""

    request_id: int
    result: Result | None  # set when it is done; its tracks have ended then
    wants_hidden: bool  # rows are hidden states, not logits

    @property
    def terms(self) -> Terms:
        """Of the request."""
        ...

    def start(self) -> None:
        """Add the first track to the scheduler."""
        ...

    def take(self, item: Planned, rows: Rows) -> list[NewToken]:
        """Go on with the wanted rows at the end of `item`, maybe none."""
        ...

    def give_up(self, *, keep: bool) -> None:
        """End all tracks. `keep`: what their memory holds is sound."""
        ...


def log_normaliser(logits: NDArray[np.float32]) -> float:
    """log of the sum of exp(logits [V]). Raises NonFiniteError for logits that are not finite."""
    highest = float(logits.max())
    if not math.isfinite(highest):
        raise NonFiniteError("the model's logits are not finite: its training diverged")
    return highest + math.log(np.exp(logits - np.float32(highest)).sum(dtype=np.float64))


def token_score(logits: NDArray[np.float32], token_id: int, n_top: int) -> TokenScore:
    """What the model thought of a token, and of the `n_top` likeliest. Raises NonFiniteError."""
    total = log_normaliser(logits)
    top = most_likely(logits, n_top) if n_top else ()
    return TokenScore(
        token_id=token_id,
        log_probability=float(logits[token_id]) - total,
        top=tuple((int(i), float(logits[i]) - total) for i in top),
    )


def start_track(
    scheduler: Scheduler, request_id: int, terms: Terms, token_ids: Sequence[int], rows_from: int
) -> Track:
    """The first track of a request, waiting for its turn."""
    track = Track(
        request_id=request_id,
        rank=scheduler.rank(request_id, terms.priority),
        token_ids=list(token_ids),
        rows_from=rows_from,
        salt=terms.cache_salt,
    )
    scheduler.add(track)
    return track


def ending(request: Generate, token_id: int) -> FinishReason | None:
    """Why this token ends the text, if it does."""
    if token_id == request.end_of_text_id:
        return FinishReason.END_OF_TEXT
    return FinishReason.STOP if token_id in request.sampling.stop_token_ids else None


def ending_ids(request: Generate) -> list[int]:
    """Beside the stop tokens."""
    return [] if request.end_of_text_id is None else [request.end_of_text_id]


class PromptScores:
    """Log-probabilities of a prompt's tokens, taken from the rows as they come."""

    def __init__(self, request: Generate) -> None:
        self._ids, self._n_top = request.prompt_ids, request.n_prompt_top
        self.scores: list[TokenScore] = []

    @property
    def rows_from(self) -> int:
        """The first position whose row is needed, for these and for the first new token."""
        return len(self._ids) - 1 if self._n_top is None else 0

    def take(self, first_position: int, rows: Rows) -> None:
        """Rows of positions from `first_position` on, those of new tokens among them."""
        if self._n_top is not None:
            self.scores += [
                token_score(row, self._ids[position + 1], self._n_top)
                for position, row in enumerate(rows, first_position)
                if position + 1 < len(self._ids)
            ]


class SampleJob:
    """A `Generate` by sampling: the prompt once, then each sample on a track of its own."""

    wants_hidden = False

    def __init__(self, request_id: int, request: Generate, scheduler: Scheduler, room: int) -> None:
        """`room`: new tokens that the window leaves."""
        self.request_id, self.result = request_id, None
        self._request, self._scheduler, self._room = request, scheduler, room
        config = request.sampling
        config = replace(config, seed=fresh_seed()) if config.seed is None else config
        self._samplers = [
            Sampler(config, request.prompt_ids, sample=i, ending_ids=ending_ids(request), mask=request.mask)
            for i in range(request.n_samples)
        ]
        self._watches = [request.watch() if request.watch else None for _ in self._samplers]
        self._wants_scores = request.best_of is not None or request.n_top is not None
        self._scores: list[list[TokenScore]] = [[] for _ in self._samplers]
        self._prompt_scores = PromptScores(request)
        self._tracks: dict[int, Track] = {}  # of the samples that go on
        self._samples: dict[int, Sample] = {}  # that ended

    result: Result | None

    @property
    def terms(self) -> Terms:
        return self._request.terms

    def start(self) -> None:
        request = self._request
        self._tracks[0] = start_track(
            self._scheduler,
            self.request_id,
            request.terms,
            request.prompt_ids,
            self._prompt_scores.rows_from,
        )

    def take(self, item: Planned, rows: Rows) -> list[NewToken]:
        track = item.track
        self._prompt_scores.take(item.start + item.n_tokens - len(rows), rows)
        if track.n_pending > 0:
            return []
        if not self._samplers[0].new_ids:  # the prompt is through
            for number in range(1, len(self._samplers)):
                self._tracks[number] = self._scheduler.fork(track, number)
            return [self._advance(number, rows[-1]) for number in list(self._tracks)]
        return [self._advance(track.rank[2], rows[-1])]

    def give_up(self, *, keep: bool) -> None:
        for track in self._tracks.values():
            self._scheduler.end(track, keep=keep)
        self._tracks.clear()

    def _advance(self, number: int, logits: NDArray[np.float32]) -> NewToken:
        request, sampler = self._request, self._samplers[number]
        logits = guided(request.guide, sampler.new_ids, logits)
        token_id = sampler.choose(logits[: request.n_choices])
        score = token_score(logits, token_id, request.n_top or 0) if self._wants_scores else None
        if score is not None:
            self._scores[number].append(score)
        n_new = len(sampler.new_ids)
        reason, watch = ending(request, token_id), self._watches[number]
        if reason is None and watch is not None and watch(token_id):
            reason = FinishReason.STOP
        if reason is None and n_new == min(self._room, request.sampling.max_new_tokens):
            reason = FinishReason.LENGTH
        if reason is None:
            self._scheduler.extend(self._tracks[number], token_id)
        else:
            self._end(number, reason)
        return NewToken(
            request_id=self.request_id,
            sample=number,
            token_id=token_id,
            score=None if request.n_top is None else score,
            finish_reason=reason,
            window_full=reason is FinishReason.LENGTH and n_new == self._room,
        )

    def _end(self, number: int, reason: FinishReason) -> None:
        self._scheduler.end(self._tracks.pop(number))
        ids, scores = tuple(self._samplers[number].new_ids), self._scores[number]
        self._samples[number] = Sample(
            index=number,
            token_ids=ids,
            finish_reason=reason,
            window_full=reason is FinishReason.LENGTH and len(ids) == self._room,
            total_log_probability=sum(s.log_probability for s in scores) if self._wants_scores else None,
            scores=() if self._request.n_top is None else tuple(scores),
        )
        if len(self._samples) == len(self._samplers):
            order = sorted(self._samples)
            if self._request.best_of is not None:
                order.sort(key=lambda i: -_mean(self._samples[i]))  # stable: the lower index first
            self.result = Generated(
                samples=tuple(self._samples[i] for i in order[: self._request.n]),
                prompt_scores=tuple(self._prompt_scores.scores),
            )


def _mean(sample: Sample) -> float:
    assert sample.total_log_probability is not None
    return sample.total_log_probability / len(sample.token_ids)


class ScoreJob:
    """A `Score`: one track, a row for every scored token."""

    wants_hidden = False

    def __init__(self, request_id: int, request: Score, scheduler: Scheduler) -> None:
        self.request_id = request_id
        self.result: Result | None = None
        self._request, self._scheduler = request, scheduler
        self._track: Track | None = None
        self._scores: list[TokenScore] = []

    @property
    def terms(self) -> Terms:
        return self._request.terms

    def start(self) -> None:
        ids = self._request.token_ids[:-1]
        self._track = start_track(
            self._scheduler, self.request_id, self.terms, ids, self._request.n_context - 1
        )

    def take(self, item: Planned, rows: Rows) -> list[NewToken]:
        first = item.start + item.n_tokens - len(rows)
        request, ids = self._request, self._request.token_ids
        for position, row in enumerate(rows, first):
            by = guided(request.guide, ids[request.n_context : position + 1], row)
            self._scores.append(token_score(by, ids[position + 1], request.n_top))
        if item.track.n_pending == 0:
            self.give_up(keep=True)
            self.result = Scored(scores=tuple(self._scores))
        return []

    def give_up(self, *, keep: bool) -> None:
        if self._track is not None:
            self._scheduler.end(self._track, keep=keep)
            self._track = None


class HiddenJob:
    """A `Hidden`: one track, hidden rows instead of logits."""

    wants_hidden = True

    def __init__(self, request_id: int, request: Hidden, scheduler: Scheduler) -> None:
        self.request_id = request_id
        self.result: Result | None = None
        self._request, self._scheduler = request, scheduler
        self._track: Track | None = None
        self._rows: list[Rows] = []

    @property
    def terms(self) -> Terms:
        return self._request.terms

    def start(self) -> None:
        ids = self._request.token_ids
        first = len(ids) - 1 if self._request.last_only else 0
        self._track = start_track(self._scheduler, self.request_id, self.terms, ids, first)

    def take(self, item: Planned, rows: Rows) -> list[NewToken]:
        if len(rows):
            self._rows.append(rows.copy())  # not the whole step's array
        if item.track.n_pending == 0:
            self.give_up(keep=True)
            self.result = HiddenStates(states=np.concatenate(self._rows))
        return []

    def give_up(self, *, keep: bool) -> None:
        if self._track is not None:
            self._scheduler.end(self._track, keep=keep)
            self._track = None
