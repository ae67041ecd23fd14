"""Whether two models say the same: a fixed battery of prompts, both answers, and how far they are apart.

The two are never asked at the same time: `answer` one, let it go, `answer` the other, then `compare`. So
two large models are never in memory together, and any engine that gives logits can stand on either side.

    KL(a || b) at one position = sum over the vocabulary of p_a (log p_a - log p_b), in nats
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.errors import NonFiniteError
from wafergpt.tokenizer.bpe import Tokenizer

Logits = NDArray[np.float32]

# Prose, code, digits, spaces, other scripts, symbols outside the basic plane: other parts of a vocabulary.
TEXTS = (
    "The river had risen in the night, and by morning the lower fields were a sheet of grey water",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\n\nprint(mean([1, 2, 3",
    "In 1969 the price was 12.50; by 1987 it had reached 1,304.75, which is 10438% of",
    "  two spaces,\ttabs,\r\n\r\n   and\u00a0more    than   one    kind of    blank\n\n\n",
    "L'été où naquit Ærøskøbing, ÿ compris; Привет, мир; γνῶθι σεαυτόν",
    "日本語の文章と한국어 문장 👩‍🚀🚀 e\u0301",
    "We don't know whether they'll come, but I'd say that she's",
)
_MAX_TEXT_TOKENS = 40
_N_SCATTERED = 2
_SCATTERED_TOKENS = 64
_LONG_POSITIONS = 16  # of the prompt that fills the window only the end is compared: V floats per position


class LogitSource(Protocol):
    """Anything that turns token ids into logits: one of our models, Transformers, llama.cpp."""

    @property
    def name(self) -> str:
        """What the user calls it; stands in messages and certificates."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of entries in a row."""
        ...

    @property
    def max_seq_len(self) -> int:
        """The longest prompt in tokens; `logits` takes one that fills it."""
        ...

    @property
    def normalized(self) -> bool:
        """True when rows are log-probabilities: the logits less a constant of their own in each row."""
        ...

    def logits(self, token_ids: Sequence[int], n_last: int) -> Logits:
        """What follows each of the last `n_last` of `token_ids`: [n_last, V], all entries finite.

        1 <= n_last <= len(token_ids) <= max_seq_len. Row i is conditioned on token_ids[: T - n_last + i + 1].
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids to read, and after how many of the last of them the prediction is compared."""

    token_ids: tuple[int, ...]
    n_last: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one source said to a battery, kept after the source itself is gone."""

    name: str
    normalized: bool
    rows: tuple[Logits, ...]  # one [n_last, V] per prompt


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far source b is from source a, the reference, over every compared position and entry.

    When either gives log-probabilities only, `max_logit_diff`, `largest_logit` and `logit_spread` are
    those of the log-probabilities of both.
    """

    n_positions: int
    compared: str  # "logits" or "log-probabilities"
    max_logit_diff: float
    largest_logit: float  # largest magnitude in a
    logit_spread: float  # root mean square of a's logits around the mean of their row
    max_log_probability_diff: float  # nats
    top1_agreement: float  # share of positions whose most likely token is the same
    mean_kl: float  # nats
    max_kl: float  # nats

    @property
    def relative_logit_diff(self) -> float:
        """Largest difference over largest magnitude."""
        return self.max_logit_diff / self.largest_logit if self.largest_logit else self.max_logit_diff


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What `compare` may find and the two still count as the same; None is not asked for."""

    reason: str  # where the figures come from, for whoever reads the certificate
    relative_logit_diff: float | None = None
    max_log_probability_diff: float | None = None
    mean_kl: float | None = None

    def misses(self, found: Comparison) -> list[str]:
        """One phrase per bound that is not kept; empty when the two are the same."""
        pairs = [
            (
                "largest logit difference over largest logit",
                found.relative_logit_diff,
                self.relative_logit_diff,
            ),
            (
                "largest log-probability difference",
                found.max_log_probability_diff,
                self.max_log_probability_diff,
            ),
            ("mean KL in nats", found.mean_kl, self.mean_kl),
        ]
        return [
            f"{what} {figure:.3g} is over the bound of {bound:.3g}"
            for what, figure, bound in pairs
            if bound is not None and not figure <= bound
        ]


def battery(tokenizer: Tokenizer | None, vocab_size: int, max_seq_len: int) -> tuple[Prompt, ...]:
    """The prompts: the same for the same tokenizer, vocabulary and window, on any machine.

    Texts (when there is a tokenizer that fits), one token alone, ids scattered over the whole vocabulary, and
    one prompt that fills the window. Without tokenizer all ids are scattered ones.
    """
    scattered = _scattered(vocab_size)
    prompts: list[list[int]] = []
    if tokenizer is not None and tokenizer.vocab_size <= vocab_size:
        prompts += [tokenizer.encode(text)[:_MAX_TEXT_TOKENS] for text in TEXTS]
        prompts.append([tokenizer.end_of_text_id])
    prompts.append([vocab_size - 1])
    prompts += [[next(scattered) for _ in range(_SCATTERED_TOKENS)] for _ in range(_N_SCATTERED)]
    cut = [tuple(ids[:max_seq_len]) for ids in prompts]
    whole = tuple(next(scattered) for _ in range(max_seq_len))
    return (
        *(Prompt(token_ids=ids, n_last=len(ids)) for ids in cut),
        Prompt(token_ids=whole, n_last=min(_LONG_POSITIONS, max_seq_len)),
    )


def _scattered(vocab_size: int) -> Iterator[int]:
    """Ids all over [0, vocab_size), in plain integers so that no library version changes them."""
    state = 1
    while True:  # Knuth's MMIX constants; the high bits are the good ones
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 32) * vocab_size >> 32


def answer(source: LogitSource, prompts: Sequence[Prompt]) -> Answers:
    """Ask `source` every prompt. Raises ConfigError when a prompt does not fit it, NonFiniteError."""
    rows = []
    for prompt in prompts:
        longest, largest = len(prompt.token_ids), max(prompt.token_ids)
        require(
            longest <= source.max_seq_len,
            f"{source.name} reads at most {source.max_seq_len} tokens, a prompt has {longest}",
        )
        require(
            largest < source.vocab_size,
            f"{source.name} has {source.vocab_size} vocabulary entries, a prompt holds id {largest}",
        )
        found = source.logits(prompt.token_ids, prompt.n_last)  # [n_last, V]
        expected = (prompt.n_last, source.vocab_size)
        assert found.shape == expected, f"{source.name} gave {found.shape} instead of {expected}"
        if not np.isfinite(found).all():
            raise NonFiniteError(f"{source.name} gives a logit that is nan or infinite")
        rows.append(found.astype(np.float32, copy=False))
    return Answers(name=source.name, normalized=source.normalized, rows=tuple(rows))


def compare(a: Answers, b: Answers) -> Comparison:
    """How far `b` is from `a`, both having answered the same battery; float64 throughout.

    Raises ConfigError when their vocabularies differ in size.
    """
    sizes = [answers.rows[0].shape[1] for answers in (a, b)]
    require(
        sizes[0] == sizes[1],
        f"{a.name} has {sizes[0]} vocabulary entries and {b.name} {sizes[1]}: they cannot be compared",
    )
    normalized = a.normalized or b.normalized
    n_positions, n_agreed = 0, 0
    logit_diff = largest = log_probability_diff = squares = total_kl = max_kl = 0.0
    for rows_a, rows_b in zip(a.rows, b.rows, strict=True):
        x, y = rows_a.astype(np.float64), rows_b.astype(np.float64)  # [n_last, V]
        log_p, log_q = _log_softmax(x), _log_softmax(y)
        if normalized:
            x, y = log_p, log_q
        kl = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)  # [n_last]
        n_positions += len(x)
        n_agreed += int((x.argmax(axis=1) == y.argmax(axis=1)).sum())
        logit_diff = max(logit_diff, float(np.abs(x - y).max()))
        largest = max(largest, float(np.abs(x).max()))
        log_probability_diff = max(log_probability_diff, float(np.abs(log_p - log_q).max()))
        squares += float(np.square(x - x.mean(axis=1, keepdims=True)).mean(axis=1).sum())
        total_kl += float(kl.sum())
        max_kl = max(max_kl, float(kl.max()))
    return Comparison(
        n_positions=n_positions,
        compared="log-probabilities" if normalized else "logits",
        max_logit_diff=logit_diff,
        largest_logit=largest,
        logit_spread=(squares / n_positions) ** 0.5,
        max_log_probability_diff=log_probability_diff,
        top1_agreement=n_agreed / n_positions,
        mean_kl=total_kl / n_positions,
        max_kl=max_kl,
    )


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(axis=1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized
