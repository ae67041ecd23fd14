"""The learning rate's pieces of a Model Zoo configuration: a warm-up, then one way down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wafergpt.checkpoints.modelzoo.section import Section
from wafergpt.config import require
from wafergpt.errors import ConfigError

_KINDS = {
    "linear": "linear",
    "linearlr": "linear",
    "cosinedecay": "cosine",
    "cosinedecaylr": "cosine",
    "constant": "constant",
    "constantlr": "constant",
}


@dataclass(frozen=True, kw_only=True)
class ZooSchedule:
    """Linear warm-up from 0, then `cosine` or linear decay to `final_fraction` of the peak, in steps.

    `decay_steps` is None for a constant rate, which has no end of its own.
    """

    peak_lr: float
    warmup_steps: int
    decay_steps: int | None
    cosine: bool
    final_fraction: float


@dataclass(frozen=True, kw_only=True)
class _Piece:
    kind: str
    first_lr: float
    last_lr: float
    steps: int | None


def read_pieces(value: Any, where: str, notes: list[str]) -> ZooSchedule:
    """From `learning_rate` (a number or a list with `scheduler` keys) or `schedulers` (a list of mappings).

    Raises ConfigError for another shape than 0 -> peak -> lower, naming `where`.
    """
    pieces = [_read_piece(item, where, notes) for item in _flatten(value, where, notes)]
    first = pieces[0]
    warms_up = first.kind == "linear" and first.last_lr > first.first_lr
    if warms_up and first.first_lr != 0:
        raise ConfigError(
            f"{where}: a warm-up that starts at {first.first_lr!r} is not supported; it must be 0"
        )
    warmup_steps = (first.steps or 0) if warms_up else 0
    rest = pieces[1:] if warms_up else pieces
    require(len(rest) <= 1, f"{where}: {len(pieces)} pieces are not supported; one warm-up and one decay are")
    if not rest:
        require(warms_up, f"{where} is empty")
        rest = [_Piece(kind="constant", first_lr=first.last_lr, last_lr=first.last_lr, steps=None)]
    down = rest[0]
    peak = down.first_lr
    if warms_up and not math.isclose(first.last_lr, peak, rel_tol=1e-9):
        raise ConfigError(f"{where}: the warm-up ends at {first.last_lr!r}, the decay starts at {peak!r}")
    if not 0 <= down.last_lr <= peak or peak <= 0:
        raise ConfigError(f"{where}: a rate from {peak!r} to {down.last_lr!r} does not fall")
    return ZooSchedule(
        peak_lr=peak,
        warmup_steps=warmup_steps,
        decay_steps=down.steps if down.kind != "constant" else None,
        cosine=down.kind == "cosine",
        final_fraction=float(f"{down.last_lr / peak:.9g}"),  # 6e-4 / 6e-3 is not quite 0.1 in binary
    )


def _flatten(value: Any, where: str, notes: list[str]) -> list[tuple[str, Any]]:
    """(name, settings) of each piece."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return [("constant", {"learning_rate": value})]
    items = value if isinstance(value, list) else [value]
    require(len(items) > 0, f"{where} is empty")
    found: list[tuple[str, Any]] = []
    for item in items:
        require(isinstance(item, dict), f"{where}: expected a mapping, got {item!r:.60}")
        if "scheduler" in item:  # release 1.x to 2.2
            found.append((str(item["scheduler"]), {key: v for key, v in item.items() if key != "scheduler"}))
            continue
        require(len(item) == 1, f"{where}: expected the name of one scheduler")
        name, body = next(iter(item.items()))
        if name == "SequentialLR":
            sequence = Section(body, f"{where}.SequentialLR", notes)
            sequence.only("milestones", None)  # would contradict the pieces' own lengths
            found += _flatten(sequence.take("schedulers"), where, notes)
            sequence.finish()
        else:
            found.append((str(name), body))
    return found


def _read_piece(item: tuple[str, Any], where: str, notes: list[str]) -> _Piece:
    name, body = item
    kind = _KINDS.get(name.lower())
    if kind is None:
        raise ConfigError(
            f"{where}: the scheduler '{name}' is not supported; linear, cosine and constant are"
        )
    section = Section(body, f"{where}.{name}", notes)
    section.only("cycle", False)
    section.only("disable_lr_steps_reset", False)
    lengths = [key for key in ("total_iters", "steps", "decay_steps") if section.is_set(key)]
    require(len(lengths) <= 1, f"{section.where}: {' and '.join(lengths)} stand side by side")
    steps = section.integer(lengths[0], minimum=1) if lengths else None
    if kind == "constant":
        key = "learning_rate" if "learning_rate" in section else "val"
        rate = section.number(key)
        piece = _Piece(kind=kind, first_lr=rate, last_lr=rate, steps=steps)
    else:
        require(steps is not None, f"missing key '{section.path('total_iters')}'")
        piece = _Piece(
            kind=kind,
            first_lr=section.number("initial_learning_rate"),
            last_lr=section.number("end_learning_rate"),
            steps=steps,
        )
    section.finish()
    return piece
