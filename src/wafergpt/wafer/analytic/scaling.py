"""Data-parallel systems: every one receives the same weights and has its part of the batch."""

from __future__ import annotations

from wafergpt.wafer.analytic.parameters import value


def scaled(systems: int) -> float:
    """Rate of `systems` systems over that of one: linear, less the loss per doubling."""
    return systems * (1.0 - value("loss_per_doubling")) ** max(0, (systems - 1).bit_length())
