"""Which tokens of which sequences run in the next step, and who holds the key-value memory (no tensors).

Every sequence is a `Track`: tokens that are known, of which the memory holds the first few. A prompt, the
token just sampled and the recomputation after a loss of memory are the same thing: tokens not yet held.

Tracks are served in the order of their rank, which never changes: the step of arrival minus `PATIENCE_STEPS`
for every point of priority. So the first in rank can always go on, taking memory from those behind it (they
recompute later), and nobody who arrives late enough can overtake: everyone is served.

Equal beginnings under one salt are computed once: whole pages are found by a chain of HMACs (salt, tokens),
in tracks that are alive or in those that ended and are kept until the memory is wanted.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wafergpt.backends.backend import Capacity, OutOfPages
from wafergpt.backends.pages import PageLedger
from wafergpt.config import require

_log = logging.getLogger(__name__)

# Steps of head start for one point of priority: about ten seconds of a 111M model on two cores.
PATIENCE_STEPS = 1000


class Memory(Protocol):
    """What is needed of a backend to hold sequences."""

    @property
    def capacity(self) -> Capacity:
        """Key-value memory in all."""
        ...

    def open(self) -> int:
        """See `Backend.open`."""
        ...

    def fork(self, sequence: int, n_tokens: int) -> int:
        """See `Backend.fork`."""
        ...

    def release(self, sequence: int) -> None:
        """See `Backend.release`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one step. Raises ConfigError when they leave no room for prompts beside the decodes."""

    step_tokens: int = 512  # most positions of one step, prompts and decodes together
    max_sequences: int = 64  # most sequences that hold memory and take part

    def __post_init__(self) -> None:
        require(self.max_sequences >= 1, f"max_sequences = {self.max_sequences} must be at least 1")
        require(
            self.max_sequences < self.step_tokens,
            f"step_tokens = {self.step_tokens} must be more than max_sequences = {self.max_sequences}",
        )


@dataclass(kw_only=True, eq=False)
class Track:
    """One sequence from its first token on. `token_ids` only ever grows."""

    request_id: int
    rank: tuple[int, int, int]  # lower first: arrival less priority, request, number within the request
    token_ids: list[int]
    rows_from: int  # the first position whose row (of logits or hidden state) is still wanted
    salt: bytes | None = None
    handle: int | None = None
    n_held: int = 0  # positions in the memory of `handle`
    digests: list[bytes] = field(default_factory=list)  # of its whole pages that are held and salted

    @property
    def n_pending(self) -> int:
        """Tokens to run before the row after the last one is known."""
        return len(self.token_ids) - self.n_held


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The next `n_tokens` of a track, and how many rows at their end are wanted."""

    track: Track
    handle: int
    start: int  # position of the first of them
    n_tokens: int
    n_rows: int

    @property
    def token_ids(self) -> list[int]:
        """The tokens to run."""
        return self.track.token_ids[self.start : self.start + self.n_tokens]


class Scheduler:
    """Step by step: `plan`, run it elsewhere, `done`; tracks are added, extended and ended in between."""

    def __init__(self, memory: Memory, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self.n_steps = 0
        self._memory, self._pages = memory, PageLedger(memory.capacity)
        self._running: list[Track] = []  # hold memory; by rank
        self._waiting: list[Track] = []  # hold none, have tokens to run; by rank
        self._kept: OrderedDict[int, Track] = OrderedDict()  # ended, by handle; longest unused first
        self._found: dict[bytes, Track] = {}  # digest of a beginning -> who holds it
        self._leaving: dict[int, bool] = {}  # handles to give back -> whether that has failed before
        self._faults: list[tuple[Track, Exception]] = []

    def rank(self, request_id: int, priority: int, number: int = 0) -> tuple[int, int, int]:
        """The rank of a track that arrives now."""
        return (self.n_steps - PATIENCE_STEPS * priority, request_id, number)

    def fits(self, n_tokens: int) -> bool:
        """Whether a sequence may ever hold so many positions."""
        return self._pages.n_pages_of(n_tokens) <= self._pages.capacity.n_pages

    @property
    def n_pages_free(self) -> int:
        """Pages that neither a track nor a kept beginning holds."""
        return self._pages.n_free

    def add(self, track: Track) -> None:
        """Let a track with tokens to run wait for its turn."""
        assert track.handle is None and track.n_pending > 0
        bisect.insort(self._waiting, track, key=_rank)

    def extend(self, track: Track, token_id: int) -> None:
        """Append a token to a track."""
        track.token_ids.append(token_id)
        if track.handle is None and not self._is_waiting(track):
            self.add(track)

    def fork(self, track: Track, number: int) -> Track:
        """A twin that may go another way; it shares memory when there is room, else it recomputes."""
        twin = Track(
            request_id=track.request_id,
            rank=(*track.rank[:2], number),
            token_ids=track.token_ids.copy(),
            rows_from=track.rows_from,
            salt=track.salt,
        )
        n_copied = int(track.n_held % self._pages.capacity.page_tokens > 0)
        self._evict_kept(n_copied)
        room = len(self._running) < self.limits.max_sequences and self._pages.n_free >= n_copied
        if track.handle is not None and room:
            self._fork(twin, track, track.n_held)
            bisect.insort(self._running, twin, key=_rank)
        return twin

    def end(self, track: Track, *, keep: bool = True) -> None:
        """Forget a track. With `keep`, a salted beginning stays in memory until that is wanted."""
        if self._is_waiting(track):
            self._waiting.remove(track)
        if track.handle is None:
            return
        self._running.remove(track)
        if keep and any(self._found.get(digest) is track for digest in track.digests):
            self._kept[track.handle] = track
        else:
            self._release(track)

    def plan(self) -> list[Planned]:
        """The next step, empty when nothing waits. Opens, forks and releases sequences in the memory.

        Tracks that cannot go on are in `take_faults`, for the caller to end.
        """
        self.n_steps += 1
        self._let_go()
        is_short = bool(self._leaving)  # of memory that was offered back at least twice
        running = [track for track in self._running if track.n_pending > 0]
        n_decodes = sum(track.n_pending == 1 for track in running)
        n_prompt_tokens = self.limits.step_tokens - n_decodes  # >= 1, as max_sequences < step_tokens
        planned: list[Planned] = []
        at, admits = 0, True
        while True:
            first = running[at] if at < len(running) else None
            if admits and self._waiting and (first is None or _rank(self._waiting[0]) < _rank(first)):
                track, is_decode = self._waiting[0], False
                admits = n_prompt_tokens > 0 and self._admit(track)
                if track.handle is None:  # no room, or its memory failed
                    continue
            elif first is not None:
                track, is_decode, at = first, first.n_pending == 1, at + 1
            else:
                if is_short and not planned:
                    self._give_up_first()
                return planned
            if track.handle is None:  # lost its memory to one before it
                admits = False
                continue
            n_tokens = 1 if is_decode else min(track.n_pending, n_prompt_tokens)
            if n_tokens and self._make_room(
                track, self._pages.n_needed(track.handle, track.n_held + n_tokens)
            ):
                planned.append(self._planned(track, n_tokens))
                n_prompt_tokens -= 0 if is_decode else n_tokens

    def _give_up_first(self) -> None:
        """The first in rank, for whom all others made room, in vain: some memory was never given back."""
        pending = [*self._waiting[:1], *(track for track in self._running if track.n_pending > 0)]
        if pending:
            error = OutOfPages("the key-value memory that is left is too short: some was never given back")
            self._faults.append((min(pending, key=_rank), error))

    def done(self, planned: Sequence[Planned]) -> None:
        """The planned step was run."""
        for item in planned:
            track = item.track
            track.n_held += item.n_tokens
            track.rows_from = max(track.rows_from, track.n_held)
            self._index(track)

    def take_faults(self) -> list[tuple[Track, Exception]]:
        """Tracks that the last `plan` gave up, and what the memory raised for them."""
        faults, self._faults = self._faults, []
        return faults

    def forget_kept(self) -> None:
        """Release the beginnings that are kept for later requests."""
        self._evict_kept(self._pages.capacity.n_pages + 1)
        self._let_go()

    def _planned(self, track: Track, n_tokens: int) -> Planned:
        assert track.handle is not None
        start, end = track.n_held, track.n_held + n_tokens
        self._pages.grow(track.handle, end)
        n_rows = max(0, end - max(track.rows_from, start))
        return Planned(track=track, handle=track.handle, start=start, n_tokens=n_tokens, n_rows=n_rows)

    def _admit(self, track: Track) -> bool:
        """Give the first of the waiting memory for all its tokens, if need be that of tracks behind it.

        False: there is no room, for nobody behind it either. True without a handle: its memory failed.
        """
        if len(self._running) >= self.limits.max_sequences:
            victim = self._victim(track)
            if victim is None:
                return False
            self._preempt(victim)
        self._waiting.remove(track)
        try:
            self._open(track)
        except Exception as error:  # the backend's fault: it must not end the others' requests
            self._faults.append((track, error))
            return True
        bisect.insort(self._running, track, key=_rank)
        promised = sum(  # to those before it and to itself
            self._pages.n_needed(other.handle, len(other.token_ids))
            for other in self._running[: self._running.index(track) + 1]
            if other.handle is not None
        )
        if self._make_room(track, promised):
            return True
        self._preempt(track)
        return False

    def _make_room(self, track: Track, n_pages: int) -> bool:
        """Free pages for a track: of kept beginnings, then of tracks behind it, then of idle ones."""
        self._evict_kept(n_pages)
        while self._pages.n_free < n_pages:
            victim = self._victim(track)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _evict_kept(self, n_pages: int) -> None:
        while self._kept and self._pages.n_free < n_pages:
            self._release(self._kept.popitem(last=False)[1])

    def _victim(self, track: Track) -> Track | None:
        behind = self._running[-1]
        if _rank(behind) > _rank(track):
            return behind
        return next((t for t in reversed(self._running) if t.n_pending == 0), None)

    def _preempt(self, track: Track) -> None:
        """Take a track's memory; it recomputes when its turn comes again."""
        self._running.remove(track)
        self._release(track)
        if track.n_pending > 0 and not self._waits_for_token(track):
            self.add(track)

    def _waits_for_token(self, track: Track) -> bool:
        return track.rows_from >= len(track.token_ids)

    def _is_waiting(self, track: Track) -> bool:
        at = bisect.bisect_left(self._waiting, _rank(track), key=_rank)
        return at < len(self._waiting) and self._waiting[at] is track

    def _open(self, track: Track) -> None:
        """Memory for a track, with the longest beginning that someone already holds."""
        page_tokens = self._pages.capacity.page_tokens
        source, n_shared = None, 0
        for n_pages, digest in enumerate(self._chain(track, track.rows_from // page_tokens), 1):
            found = self._found.get(digest)
            if found is None:
                break
            source, n_shared = found, n_pages * page_tokens
        if source is None:
            track.handle, track.n_held = self._memory.open(), 0
            self._pages.open(track.handle)
            return
        self._fork(track, source, n_shared)

    def _fork(self, track: Track, source: Track, n_tokens: int) -> None:
        assert source.handle is not None
        if source.handle in self._kept:
            self._kept.move_to_end(source.handle)
        track.handle = self._memory.fork(source.handle, n_tokens)
        self._pages.fork(source.handle, track.handle, n_tokens)
        track.n_held = n_tokens
        track.digests = source.digests[: n_tokens // self._pages.capacity.page_tokens]
        self._found.update(dict.fromkeys(track.digests, track))  # the newest holder lives longest

    def _release(self, track: Track) -> None:
        assert track.handle is not None
        for digest in track.digests:
            if self._found.get(digest) is track:
                del self._found[digest]
        handle, track.handle, track.n_held, track.digests = track.handle, None, 0, []
        self._leaving[handle] = False
        self._let_go()

    def _let_go(self) -> None:
        """Give memory back. What it will not take back now counts as used and is offered again next step."""
        for handle, has_failed in list(self._leaving.items()):
            try:
                self._memory.release(handle)
            except Exception as error:  # the backend's fault: nobody's request need end for it
                self._leaving[handle] = True
                if not has_failed:
                    _log.warning("sequence %d could not be released: %s", handle, error)
            else:
                del self._leaving[handle]
                self._pages.release(handle)

    def _index(self, track: Track) -> None:
        """Let others find the whole pages that a salted track holds by now."""
        n_pages = track.n_held // self._pages.capacity.page_tokens
        if track.salt is None or n_pages == len(track.digests):
            return
        track.digests = list(self._chain(track, n_pages))
        for digest in track.digests:
            self._found.setdefault(digest, track)

    def _chain(self, track: Track, n_pages: int) -> Iterator[bytes]:
        """The digests of a salted track's first pages, each of all tokens up to its end."""
        if track.salt is None:
            return
        yield from track.digests[:n_pages]
        digest = track.digests[-1] if track.digests else b""
        size = self._pages.capacity.page_tokens
        for page in range(len(track.digests), n_pages):
            ids = track.token_ids[page * size : (page + 1) * size]
            text = digest + b"".join(i.to_bytes(4, "little") for i in ids)
            digest = hmac.digest(track.salt, text, hashlib.sha256)
            yield digest


def _rank(track: Track) -> tuple[int, int, int]:
    return track.rank
