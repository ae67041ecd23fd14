"""Beam search: the n_beams most likely continuations, all one token longer in every round (no torch).

A beam's log-probability is the sum over its tokens, of logits after bias, penalties and mask. Beams that end
are compared by that sum / (new tokens) ^ length_penalty. The search is over when n_beams have ended and no
beam that goes on would, ended now, beat the worst of them; or at the limit of tokens, where all end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.inference.jobs import PromptScores, Rows, ending, ending_ids, log_normaliser, start_track
from wafergpt.inference.request import FinishReason, Generate, Generated, NewToken, Result, Sample, Terms
from wafergpt.inference.sampling import Sampler, guided, most_likely
from wafergpt.inference.scheduler import Planned, Scheduler, Track


class _Beam:
    """One continuation that goes on."""

    def __init__(self, track: Track, sampler: Sampler, total: float) -> None:
        self.track, self.sampler, self.total = track, sampler, total
        self.choices: list[tuple[float, int]] | None = None  # (sum with it, token id), once its row is there


class BeamJob:
    """A `Generate` with n_beams above 1."""

    wants_hidden = False

    def __init__(self, request_id: int, request: Generate, scheduler: Scheduler, room: int) -> None:
        """`room`: new tokens that the window leaves."""
        self.request_id = request_id
        self.result: Result | None = None
        self._request, self._scheduler, self._room = request, scheduler, room
        self._limit = min(room, request.sampling.max_new_tokens)
        self._prompt_scores = PromptScores(request)
        self._beams: list[_Beam] = []
        self._tracks: list[Track] = []  # not ended: those of the beams and, while these change, some more
        self._ended: list[tuple[float, Sample]] = []  # best first
        self._n_forks = 0

    @property
    def terms(self) -> Terms:
        return self._request.terms

    def start(self) -> None:
        request = self._request
        rows_from = self._prompt_scores.rows_from
        track = start_track(self._scheduler, self.request_id, self.terms, request.prompt_ids, rows_from)
        sampler = Sampler(
            request.sampling, request.prompt_ids, ending_ids=ending_ids(request), mask=request.mask
        )
        self._beams, self._tracks = [_Beam(track, sampler, 0.0)], [track]

    def take(self, item: Planned, rows: Rows) -> list[NewToken]:
        self._prompt_scores.take(item.start + item.n_tokens - len(rows), rows)
        if item.track.n_pending == 0:
            beam = next(b for b in self._beams if b.track is item.track)
            beam.choices = self._choices(beam, rows[-1])
            if all(b.choices is not None for b in self._beams):
                self._next_round()
        return []

    def give_up(self, *, keep: bool) -> None:
        while self._tracks:
            self._scheduler.end(self._tracks.pop(), keep=keep)
        self._beams = []

    def _choices(self, beam: _Beam, logits: NDArray[np.float32]) -> list[tuple[float, int]]:
        """Twice as many as there are beams, so that enough are left when some end the text."""
        logits = guided(self._request.guide, beam.sampler.new_ids, logits)
        adjusted = beam.sampler.adjusted(logits[: self._request.n_choices])
        base = beam.total - log_normaliser(adjusted)
        likely = most_likely(adjusted, 2 * self._request.n_beams)
        return [(base + float(adjusted[i]), int(i)) for i in likely if adjusted[i] > -np.inf]

    def _next_round(self) -> None:
        width = self._request.n_beams
        ranked = sorted(
            (
                (total, number, token_id)
                for number, b in enumerate(self._beams)
                for total, token_id in b.choices or ()
            ),
            key=lambda choice: (-choice[0], *choice[1:]),
        )
        chosen: list[tuple[float, int, int]] = []
        for place, (total, number, token_id) in enumerate(ranked):
            reason = ending(self._request, token_id)
            if reason is None:
                chosen.append((total, number, token_id))
            elif place < width:
                self._record([*self._beams[number].sampler.new_ids, token_id], total, reason)
            if len(chosen) == width:
                break
        self._go_on(chosen)
        n_new = len(self._beams[0].sampler.new_ids) if self._beams else self._limit
        if n_new == self._limit:
            for beam in self._beams:
                self._record(beam.sampler.new_ids, beam.total, FinishReason.LENGTH)
        elif len(self._ended) < width or self._worth(self._beams[0].total, n_new) > self._ended[width - 1][0]:
            for beam in self._beams:
                self._scheduler.extend(beam.track, beam.sampler.new_ids[-1])
            return
        self.give_up(keep=True)
        self.result = Generated(
            samples=tuple(sample for _, sample in self._ended[: self._request.n]),
            prompt_scores=tuple(self._prompt_scores.scores),
        )

    def _go_on(self, chosen: list[tuple[float, int, int]]) -> None:
        """Beams of the chosen choices: the first child takes its parent's track, the others fork it."""
        parents, self._beams = self._beams, []
        inherited: set[int] = set()
        for total, number, token_id in chosen:
            parent = parents[number]
            track = parent.track
            if number in inherited:
                self._n_forks += 1
                track = self._scheduler.fork(track, self._n_forks)
                self._tracks.append(track)
            inherited.add(number)
            sampler = parent.sampler.copy()
            sampler.take(token_id)
            self._beams.append(_Beam(track, sampler, total))
        for number, parent in enumerate(parents):
            if number not in inherited:
                self._tracks.remove(parent.track)
                self._scheduler.end(parent.track)

    def _worth(self, total: float, n_new: int) -> float:
        penalty: float = float(n_new) ** self._request.length_penalty
        return total / penalty

    def _record(self, token_ids: list[int], total: float, reason: FinishReason) -> None:
        sample = Sample(
            index=len(self._ended),
            token_ids=tuple(token_ids),
            finish_reason=reason,
            window_full=reason is FinishReason.LENGTH and len(token_ids) == self._room,
            total_log_probability=total,
        )
        self._ended.append((self._worth(total, len(token_ids)), sample))
        self._ended.sort(key=lambda ended: -ended[0])  # stable: the earlier first among equals
