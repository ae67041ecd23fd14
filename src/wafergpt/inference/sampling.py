"""From logits to a token: settings, and one random draw that depends on nothing else (no torch).

The order in which a row of logits is worked on: logit bias; repetition, frequency and presence penalty; what
a mask or `min_new_tokens` forbids; temperature; top-k, top-p of what is left, min-p of what is left.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require, require_finite
from wafergpt.errors import ConfigError, NonFiniteError

# Which tokens may come next, [V] booleans, given the new tokens so far: for grammars and the like.
Mask = Callable[[Sequence[int]], NDArray[np.bool_]]

# Logits [V] instead of the model's own, given the new tokens so far: what else is known of the next token.
Guide = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]

MAX_NEW_TOKENS = 2**20
MAX_SEED = 2**64 - 1
MAX_LOGIT = 1e4  # of a bias; beyond any logit of this family
MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 4096
_BLOCK = 256  # probabilities summed at once in a draw
_MAXIMA_OF = 64  # scores whose highest stands for them in the first sieve
_SORTED_FIRST = (256, 8192)  # candidates for top-p that are sorted before all are


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to choose tokens and when to stop. Raises ConfigError for a value out of range."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most likely token (greedy)
    top_k: int | None = None  # only the k most likely tokens; None: all
    top_p: float = 1.0  # then only the fewest tokens that reach this probability together; 1: all
    min_p: float = 0.0  # then only tokens at least this fraction as likely as the likeliest; 0: all
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of prompt and new tokens
    frequency_penalty: float = 0.0  # taken off a logit for each time its token was written
    presence_penalty: float = 0.0  # taken off once if its token was written at all
    logit_bias: dict[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int | None = None  # of the random draws; None: fresh ones each time
    stop: tuple[str, ...] = ()  # texts that end the generation and are not part of it
    stop_token_ids: tuple[int, ...] = ()  # tokens that end it
    min_new_tokens: int = 0  # before that neither end-of-text nor a stop token can be chosen
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        require_finite("temperature", self.temperature, minimum=0.0, maximum=1e6)
        require(self.top_k is None or self.top_k >= 1, f"top_k = {self.top_k} must be at least 1")
        require(0 < self.top_p <= 1, f"top_p = {self.top_p!r} is out of range; allowed: above 0 to 1")
        require_finite("min_p", self.min_p, minimum=0.0, maximum=1.0)
        require_finite("repetition_penalty", self.repetition_penalty, minimum=0.01, maximum=100.0)
        require_finite("frequency_penalty", self.frequency_penalty, minimum=-100.0, maximum=100.0)
        require_finite("presence_penalty", self.presence_penalty, minimum=-100.0, maximum=100.0)
        for token_id, bias in self.logit_bias.items():
            require(token_id >= 0, f"logit_bias: token id {token_id} must not be negative")
            require_finite(f"logit_bias of token {token_id}", bias, minimum=-MAX_LOGIT, maximum=MAX_LOGIT)
        require(
            self.seed is None or 0 <= self.seed <= MAX_SEED,
            f"seed = {self.seed} must not be negative, nor above 2^64 - 1",
        )
        require(not isinstance(self.stop, str), "stop must be a list of texts, not one text")
        require(all(self.stop), "a stop text must not be empty")
        require(len(self.stop) <= MAX_STOP_TEXTS, f"more than {MAX_STOP_TEXTS} stop texts")
        require(
            all(len(text) <= MAX_STOP_CHARACTERS for text in self.stop),
            f"a stop text has more than {MAX_STOP_CHARACTERS} characters",
        )
        require(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids must not be negative")
        require(
            1 <= self.max_new_tokens <= MAX_NEW_TOKENS,
            f"max_new_tokens = {self.max_new_tokens} must be at least 1, at most {MAX_NEW_TOKENS}",
        )
        require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens = {self.min_new_tokens} is not in 0..max_new_tokens = {self.max_new_tokens}",
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


def fresh_seed() -> int:
    """For a request that names none."""
    return secrets.randbits(64)


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) that depends on these three alone: the draw of one position of one sample.

    A hash and no stream, so nothing drawn elsewhere, before or in another order can change it.
    """
    key = b"".join(n.to_bytes(8, "little") for n in (seed, sample, position))
    digest = hashlib.blake2b(key, digest_size=8, person=b"wafergpt draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def guided(guide: Guide | None, new_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [V] by the guide, if there is one. Raises ConfigError when it gives something else."""
    if guide is None:
        return logits
    changed = guide(new_ids, logits)
    if changed.shape != logits.shape or changed.dtype != np.float32:
        raise ConfigError(f"a guide must give {len(logits)} float32 logits, one for each token")
    return changed


class Sampler:
    """Chooses one token after the other for one sequence, and knows what it has chosen."""

    def __init__(
        self,
        config: SamplingConfig,
        prompt_ids: Sequence[int] = (),
        *,
        sample: int = 0,
        ending_ids: Iterable[int] = (),
        mask: Mask | None = None,
    ) -> None:
        """`ending_ids` are held back by `min_new_tokens`, as the config's `stop_token_ids` are."""
        self.config, self.sample, self.mask = config, sample, mask
        self.new_ids: list[int] = []
        self._prompt_ids = prompt_ids
        self._ending_ids = sorted({*ending_ids, *config.stop_token_ids})
        self._seed = fresh_seed() if config.seed is None else config.seed
        self._n_written: Counter[int] = Counter()

    def copy(self) -> Sampler:
        """One that has chosen the same so far."""
        twin = Sampler(self.config, self._prompt_ids, sample=self.sample, mask=self.mask)
        twin._ending_ids, twin._seed = self._ending_ids, self._seed
        twin.new_ids, twin._n_written = self.new_ids.copy(), self._n_written.copy()
        return twin

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token id from logits [V]. Raises NonFiniteError when a logit is NaN or +infinity."""
        token_id = self._choose(self.adjusted(logits))
        self.take(token_id)
        return token_id

    def take(self, token_id: int) -> None:
        """Note the next token, whoever chose it."""
        self.new_ids.append(token_id)
        self._n_written[token_id] += 1

    def adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [V] with bias, penalties and what is forbidden (-infinity); the argument is not changed.

        Raises NonFiniteError for logits that are not finite, ConfigError when nothing is allowed.
        """
        highest = logits.max()
        if not np.isfinite(highest):  # NaN wins every max; -inf alone means that nothing is allowed
            raise NonFiniteError("the model's logits are not finite: its training diverged")
        changed = self._penalised(logits)
        early = len(self.new_ids) < self.config.min_new_tokens
        if self.mask is None and not (early and self._ending_ids):
            return changed
        changed = changed if changed is not logits else logits.copy()
        if early:
            changed[[i for i in self._ending_ids if i < len(changed)]] = -np.inf
        if self.mask is not None:
            allowed = self.mask(self.new_ids)
            if allowed.shape != changed.shape or allowed.dtype != np.bool_:
                raise ConfigError(f"a mask must be {len(changed)} booleans, one for each token")
            changed[~allowed] = -np.inf
        if changed.max() == -np.inf:
            raise ConfigError("the mask allows no token at all")
        return changed

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        config = self.config
        repeats = config.repetition_penalty != 1
        counts = config.frequency_penalty != 0 or config.presence_penalty != 0
        if not (config.logit_bias or repeats or counts):
            return logits
        changed = logits.copy()
        for token_id, bias in config.logit_bias.items():
            require(token_id < len(logits), f"logit_bias: token id {token_id} is not one of {len(logits)}")
            changed[token_id] += np.float32(bias)
        if repeats:
            seen = np.unique(np.array([*self._prompt_ids, *self.new_ids], np.int64))
            seen = seen[seen < len(changed)]
            row, penalty = changed[seen], np.float32(config.repetition_penalty)
            changed[seen] = np.where(row > 0, row / penalty, row * penalty)
        if counts:
            ids = np.fromiter(self._n_written, np.int64, len(self._n_written))
            n = np.fromiter(self._n_written.values(), np.float32, len(self._n_written))
            changed[ids] -= np.float32(config.frequency_penalty) * n + np.float32(config.presence_penalty)
        return changed

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self.config.greedy:
            return int(logits.argmax())
        ids, p = distribution(logits, self.config)
        drawn = uniform(self._seed, self.sample, len(self._prompt_ids) + len(self.new_ids))
        return int(ids[inverse(p, drawn)])


def inverse(p: NDArray[np.float64], drawn: float) -> int:
    """Where the cumulative sum of p, made to end at 1, passes `drawn`; the last index takes the rounding.

    Sums of blocks first, then one block value by value: a fifth of the time of a sum over every value.
    """
    ends = np.add.reduceat(p, np.arange(0, len(p), _BLOCK)).cumsum()
    wanted = drawn * ends[-1]
    block = min(int(np.searchsorted(ends, wanted, side="right")), len(ends) - 1)
    before = ends[block - 1] if block else 0.0
    first = block * _BLOCK
    within = p[first : first + _BLOCK].cumsum() + before
    return first + min(int(np.searchsorted(within, wanted, side="right")), len(within) - 1)


def distribution(
    logits: NDArray[np.float32], config: SamplingConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn and their probabilities (float64, summing to 1).

    Temperature, then top-k, top-p of what is left, min-p of what is left; among equals the lower id comes
    first. Most likely first when any of these three cuts; in the order of their ids otherwise.
    """
    p = logits.astype(np.float64)  # worked on in place: fresh memory costs more than the arithmetic
    p -= p.max()
    p /= config.temperature  # finite for a tiny temperature too: at most 0
    if config.top_k is None:
        order = np.arange(len(p))
    else:
        order = most_likely(p, config.top_k)
        p = p[order]
    np.exp(p, out=p)
    p /= p.sum()
    if config.top_p < 1:
        order, p = _reaching(order, p, config.top_p)
    if config.min_p > 0:
        kept = p >= config.min_p * p.max()
        order, p = order[kept], p[kept] / p[kept].sum()
        if config.top_k is None and config.top_p == 1:
            by_p = np.argsort(-p, kind="stable")
            order, p = order[by_p], p[by_p]
    return order, p


def most_likely(scores: NDArray[np.floating[Any]], n: int) -> NDArray[np.int64]:
    """The n highest, highest first, the lower index first among equals; sorts little more than them."""
    candidates = np.arange(len(scores))
    if n < len(scores) // _MAXIMA_OF:  # the n-th of the blocks' highest has n scores at or above it
        highest = np.maximum.reduceat(scores, np.arange(0, len(scores), _MAXIMA_OF))
        candidates = np.flatnonzero(scores >= _nth_highest(highest, n))
    found = scores[candidates]
    if n < len(candidates):
        among = found >= _nth_highest(found, n)  # more than n when there are equals
        candidates, found = candidates[among], found[among]
    return candidates[np.argsort(-found, kind="stable")][:n]


def _nth_highest(scores: NDArray[np.floating[Any]], n: int) -> np.floating[Any]:
    least: np.floating[Any] = np.partition(scores, len(scores) - n)[len(scores) - n]
    return least


def _reaching(
    ids: NDArray[np.int64], p: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fewest, most likely first, that reach `top_p` together."""
    for n in (*_SORTED_FIRST, len(p)):
        order = most_likely(p, n)
        total = p[order].cumsum()
        n_kept = int(np.searchsorted(total, top_p)) + 1  # up to the one that reaches it
        if n_kept <= len(order) or n >= len(p):
            break
    kept = order[:n_kept]
    return ids[kept], p[kept] / p[kept].sum()
