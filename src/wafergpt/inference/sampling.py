"""From logits to a token: temperature, top-k, top-p, one random draw (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require, require_finite
from wafergpt.errors import NonFiniteError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to choose tokens and when to stop. Raises ConfigError for a value out of range."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most likely token (greedy)
    top_k: int | None = None  # only the k most likely tokens; None: all
    top_p: float = 1.0  # then only the fewest tokens that reach this probability together; 1: all
    seed: int | None = None  # of the random draws; None: fresh ones each time
    stop: tuple[str, ...] = ()  # texts that end the generation and are not part of it
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        require_finite("temperature", self.temperature, minimum=0.0)
        require(self.top_k is None or self.top_k >= 1, f"top_k = {self.top_k} must be at least 1")
        require_finite("top_p", self.top_p)
        require(0 < self.top_p <= 1, f"top_p = {self.top_p!r} is out of range; allowed: above 0 to 1")
        require(self.seed is None or self.seed >= 0, f"seed = {self.seed} must not be negative")
        require(not isinstance(self.stop, str), "stop must be a list of texts, not one text")
        require(all(self.stop), "a stop text must not be empty")
        require(self.max_new_tokens >= 1, f"max_new_tokens = {self.max_new_tokens} must be at least 1")


class Sampler:
    """Chooses one token after the other for one sequence; its random stream belongs to it alone."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token id from logits [V]. Raises NonFiniteError when a logit is NaN or +infinity."""
        highest = logits.max()
        if not np.isfinite(highest):  # NaN wins every max; -inf alone means that nothing is allowed
            raise NonFiniteError("the model's logits are not finite: its training diverged")
        if self.config.temperature == 0:
            return int(logits.argmax())
        ids, p = distribution(logits, self.config)
        # Inverse of the cumulative distribution at one uniform number; the last id takes the rounding.
        drawn = np.searchsorted(p.cumsum(), self._random.random() * p.sum(), side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def distribution(
    logits: NDArray[np.float32], config: SamplingConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn, most likely first, and their probabilities (float64, summing to 1).

    Temperature, then top-k, then top-p of what is left; among equals the lower id comes first.
    """
    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max()) / config.temperature  # finite for a tiny temperature too: at most 0
    order = np.argsort(-scaled, kind="stable")[: config.top_k]
    p = np.exp(scaled[order])
    p /= p.sum()
    if config.top_p < 1:
        n_kept = int(np.searchsorted(p.cumsum(), config.top_p)) + 1  # up to the one that reaches it
        order, p = order[:n_kept], p[:n_kept] / p[:n_kept].sum()
    return order, p
