"""Whether a confidence means what it says: temperature, reliability, calibration error (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N_BINS = 15  # of equal width, as in Guo et al. 2017
_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures searched; outside, the confidences are all 1 or all alike


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    n: int
    confidence: float  # mean
    accuracy: float


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities [N, C] of logits [N, C] / temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def nats(logits: NDArray[np.floating], labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean -log probability of the labels [N]."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    total = np.log(np.exp(scaled).sum(-1))
    return float((total - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature of the least nats (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    A label counts as right with probability 1 - 1 / (n + 2) only (Platt 1999): n examples that are all right
    do not show that nothing is ever wrong. The nats are convex in 1/T, so thirds of the interval close in on
    the least; 60 give 10 digits.
    """
    doubt = 1 / (len(labels) + 2)

    def cost(temperature: float) -> float:
        told = nats(logits, labels, temperature)
        any_label = float(-np.log(np.maximum(softmax(logits, temperature), 1e-300)).mean())
        return (1 - doubt) * told + doubt * any_label

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if cost(1 / left) <= cost(1 / right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def reliability(confidences: Floats, right: NDArray[np.bool_], n_bins: int = N_BINS) -> list[Bin]:
    """The bins that hold something; bin i holds confidences in (i/n, (i+1)/n]."""
    numbers = np.clip(np.ceil(confidences * n_bins).astype(int) - 1, 0, n_bins - 1)
    bins = []
    for i in range(n_bins):
        chosen = numbers == i
        if chosen.any():
            bins.append(
                Bin(
                    low=i / n_bins,
                    high=(i + 1) / n_bins,
                    n=int(chosen.sum()),
                    confidence=float(confidences[chosen].mean()),
                    accuracy=float(right[chosen].mean()),
                )
            )
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean gap between confidence and accuracy, by how many answers each bin holds."""
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / total
