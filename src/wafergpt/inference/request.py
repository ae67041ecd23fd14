"""What may be asked of a model, in token ids, and what comes back. Every number is bounded (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require, require_finite
from wafergpt.inference.sampling import Guide, Mask, SamplingConfig

# Made anew for each sample, then told every token of it that does not end it anyway: True ends it here.
Watch = Callable[[], Callable[[int], bool]]

MAX_SAMPLES = 128
MAX_BEAMS = 64
MAX_TOP = 128  # log-probabilities listed for one position
MAX_PRIORITY = 10
MAX_DEADLINE_S = 7 * 24 * 3600.0
MAX_SALT_BYTES = 256


class FinishReason(StrEnum):
    """Why a generation ended."""

    END_OF_TEXT = "end_of_text"  # the model said that the document is over
    STOP = "stop"  # a stop text or a stop token appeared
    LENGTH = "length"  # max_new_tokens reached, or the context window full


class FailureKind(StrEnum):
    """Why a request ended without a result."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"  # not ready in `deadline_s`
    ERROR = "error"  # its step, its logits or its mask failed


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which terms any request is served."""

    priority: int = 0  # -10..10, higher first; it wins a bounded head start, so the lower ones are served too
    deadline_s: float | None = None  # from its submission
    cache_salt: bytes | None = (
        None  # requests of one salt share the memory of equal beginnings; None: with no one
    )

    def __post_init__(self) -> None:
        require(
            -MAX_PRIORITY <= self.priority <= MAX_PRIORITY,
            f"priority = {self.priority} is not in -{MAX_PRIORITY}..{MAX_PRIORITY}",
        )
        if self.deadline_s is not None:
            require_finite("deadline_s", self.deadline_s, minimum=0.0, maximum=MAX_DEADLINE_S)
        salt = self.cache_salt
        require(
            salt is None or 1 <= len(salt) <= MAX_SALT_BYTES,
            f"cache_salt must have 1..{MAX_SALT_BYTES} bytes",
        )


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt."""

    prompt_ids: tuple[int, ...]  # at least one, and room for one more in the window
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    n: int = 1  # continuations wanted
    best_of: int | None = None  # write so many, keep the n of highest mean log-probability; None: n
    n_beams: int = 1  # above 1: beam search, greedy, the n best of its beams
    length_penalty: float = 1.0  # a beam's log-probability is divided by (new tokens) ^ this
    end_of_text_id: int | None = None
    n_choices: int | None = None  # only ids below it may be chosen (the tokenizer's size); None: all
    n_top: int | None = None  # log-probabilities of new tokens and the n likeliest; None: not computed
    n_prompt_top: int | None = None  # the same of the prompt's tokens after the first
    mask: Mask | None = None
    guide: Guide | None = None  # before bias, penalties and mask; log-probabilities are by it
    watch: Watch | None = None  # for stop texts: it reads what the tokens say
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        require(len(self.prompt_ids) >= 1, "a prompt needs at least one token")
        require(1 <= self.n <= MAX_SAMPLES, f"n = {self.n} is not in 1..{MAX_SAMPLES}")
        best_of = self.best_of
        require(
            best_of is None or self.n <= best_of <= MAX_SAMPLES,
            f"best_of = {best_of} is not in n = {self.n}..{MAX_SAMPLES}",
        )
        require(1 <= self.n_beams <= MAX_BEAMS, f"n_beams = {self.n_beams} is not in 1..{MAX_BEAMS}")
        require_finite("length_penalty", self.length_penalty, minimum=-10.0, maximum=10.0)
        require(
            self.n_choices is None or self.n_choices >= 1, f"n_choices = {self.n_choices} is not positive"
        )
        for name, value in (("n_top", self.n_top), ("n_prompt_top", self.n_prompt_top)):
            require(value is None or 0 <= value <= MAX_TOP, f"{name} = {value} is not in 0..{MAX_TOP}")
        if self.n_beams > 1:
            require(self.sampling.greedy, "beam search is greedy: set temperature to 0")
            require(best_of is None, "best_of and n_beams exclude each other")
            require(self.n <= self.n_beams, f"n = {self.n} is more than n_beams = {self.n_beams}")
            require(not self.sampling.stop, "beam search knows stop tokens, not stop texts")
            require(
                self.watch is None, "beam search cannot be watched: its beams are rewritten until the end"
            )
            require(self.n_top is None, "beam search does not list log-probabilities of tokens")
        else:
            require(self.length_penalty == 1, "length_penalty belongs to beam search")

    @property
    def n_samples(self) -> int:
        """Continuations written, whether wanted in the end or not."""
        return self.n if self.best_of is None else self.best_of


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely the tokens from `n_context` on are, each given all before it."""

    token_ids: tuple[int, ...]  # 2 to max_seq_len + 1
    n_context: int = 1  # tokens that are given, not scored; at least one
    n_top: int = 0  # the likeliest tokens listed at each scored position
    guide: Guide | None = None  # its new tokens are those after the first n_context
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        require(len(self.token_ids) >= 2, "a window to score needs at least two tokens")
        require(
            1 <= self.n_context < len(self.token_ids),
            f"n_context = {self.n_context} is not in 1..{len(self.token_ids) - 1}",
        )
        require(0 <= self.n_top <= MAX_TOP, f"n_top = {self.n_top} is not in 0..{MAX_TOP}")


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The last hidden state, after the final LayerNorm."""

    token_ids: tuple[int, ...]
    last_only: bool = True  # of the last position; False: of all
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        require(len(self.token_ids) >= 1, "hidden states need at least one token")


Request = Generate | Score | Hidden


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """One token as the model saw it, before any sampling setting: natural log-probabilities."""

    token_id: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()  # likeliest first: (token id, log-probability)

    @property
    def is_likeliest(self) -> bool:
        """Whether greedy decoding would have said it (known when `top` was asked for)."""
        return bool(self.top) and self.top[0][0] == self.token_id


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One continuation."""

    index: int  # which of the n_samples, as in `NewToken`
    token_ids: tuple[int, ...]  # an end-of-text or stop token included
    finish_reason: FinishReason
    window_full: bool = False  # LENGTH because prompt and new tokens fill the context window
    total_log_probability: float | None = None  # of its tokens; known with best_of, n_beams or n_top
    scores: tuple[TokenScore, ...] = ()  # with n_top


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The result of `Generate`: the `n` wanted, best first with best_of or n_beams."""

    samples: tuple[Sample, ...]
    prompt_scores: tuple[TokenScore, ...] = ()  # of prompt_ids[1:], with n_prompt_top


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of `Score`: one entry for each token from `n_context` on."""

    scores: tuple[TokenScore, ...]

    @property
    def total_log_probability(self) -> float:
        """Nats, at most 0."""
        return sum(score.log_probability for score in self.scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStates:
    """The result of `Hidden`."""

    states: NDArray[np.float32]  # [1, D] or [T, D]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Instead of a result."""

    kind: FailureKind
    message: str
    error: Exception | None = None


Result = Generated | Scored | HiddenStates | Failed


@dataclass(frozen=True, kw_only=True)
class NewToken:
    """A token just chosen. Beam search sends none: its beams are rewritten until the end."""

    request_id: int
    sample: int  # 0 .. n_samples - 1
    token_id: int
    score: TokenScore | None = None  # with n_top
    finish_reason: FinishReason | None = None  # set on the sample's last token
    window_full: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a request; each has exactly one."""

    request_id: int
    result: Result


Event = NewToken | Finished
