"""Routes of the fabric: per color and router which ports come in and which go out, per switch position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.errors import ProgramError, RouteError
from wafergpt.wafer.machine.isa import N_POSITIONS, RAMP

PORTS = "NESWR"  # north, east, south, west, ramp
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def port_mask(letters: str) -> int:
    """`"ER"` as a bit mask; raises RouteError for another letter."""
    mask = 0
    for letter in letters:
        if letter not in PORTS:
            raise RouteError(f"unknown port '{letter}': {', '.join(PORTS)}")
        mask |= 1 << PORTS.index(letter)
    return mask


def region(width: int, height: int, at: object) -> Mask:
    """The PEs [height, width] of `at`: None (all), (x, y) of ints or slices, or such an array itself."""
    mask = np.zeros((height, width), np.bool_)
    if at is None:
        mask[:] = True
    elif isinstance(at, np.ndarray) and at.shape == mask.shape and at.dtype == np.bool_:
        mask |= at
    elif isinstance(at, tuple) and len(at) == 2 and all(isinstance(part, (int, slice)) for part in at):
        for part, size in zip(at, (width, height), strict=True):
            if isinstance(part, int) and not 0 <= part < size:
                raise ProgramError(f"PE {at} is outside the {width} x {height} mesh")
        mask[at[1], at[0]] = True
    else:
        raise ProgramError(f"not a region of the {width} x {height} mesh: (x, y), slices or a boolean array")
    return mask


@dataclass
class Routes:
    """Grows color by color; P PEs in row order."""

    width: int
    height: int
    rx: list[Bytes] = field(default_factory=list)  # per color [P, N_POSITIONS]
    tx: list[Bytes] = field(default_factory=list)
    n_positions: list[Bytes] = field(default_factory=list)  # per color [P]
    ring: list[Bytes] = field(default_factory=list)

    def add_color(self) -> None:
        """One more color without routes."""
        n = self.width * self.height
        self.rx.append(np.zeros((n, N_POSITIONS), np.uint8))
        self.tx.append(np.zeros((n, N_POSITIONS), np.uint8))
        self.n_positions.append(np.ones(n, np.uint8))
        self.ring.append(np.zeros(n, np.uint8))

    def set(self, color: int, at: Mask, positions: tuple[tuple[str, str], ...], *, ring: bool) -> None:
        """Give the routers `at` their switch positions (rx, tx); in ring mode the first follows the last."""
        if not 1 <= len(positions) <= N_POSITIONS:
            raise RouteError(f"a route has 1 to {N_POSITIONS} switch positions, not {len(positions)}")
        flat = at.ravel()
        for place, (rx, tx) in enumerate(positions):
            self.rx[color][flat, place] = port_mask(rx)
            self.tx[color][flat, place] = port_mask(tx)
        self.n_positions[color][flat] = len(positions)
        self.ring[color][flat] = ring


def check_routes(rx: Bytes, tx: Bytes, shape: tuple[int, int], names: Sequence[str]) -> None:
    """Raise RouteError where a wavelet would come to a dead end, whatever the switches do.

    rx, tx [P, C, N_POSITIONS]; shape (height, width); names of the C colors.
    """
    for color, name in enumerate(names):
        into, out = rx[:, color], tx[:, color]
        _refuse((into != 0) & (out == 0), shape, name, "takes wavelets in and sends them nowhere")
        _refuse((into & out) != 0, shape, name, "sends wavelets back where they came from")
        accepted = np.bitwise_or.reduce(into, axis=1).reshape(shape)
        for port in range(RAMP):
            takes = np.zeros(shape, np.bool_)
            here, there = _edges(port)
            takes[here] = (accepted[there] >> (port + 2) % 4 & 1) != 0
            leaves = ((out >> port & 1) != 0) & (into != 0)
            dead = leaves & ~takes.reshape(-1, 1)
            _refuse(dead, shape, name, f"sends wavelets {PORTS[port]} where no router takes them (no sink)")


def _refuse(wrong: Mask, shape: tuple[int, int], name: str, what: str) -> None:
    found = np.flatnonzero(wrong.any(axis=1))
    if len(found):
        y, x = divmod(int(found[0]), shape[1])
        raise RouteError(f"color '{name}' at PE ({x}, {y}): {what}")


def _edges(port: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Index pairs (rows, columns): the PEs that have a neighbour beyond `port`, and those neighbours."""
    low, high, every = slice(None, -1), slice(1, None), slice(None)
    pairs = {0: ((high, every), (low, every)), 1: ((every, low), (every, high))}
    pairs |= {2: ((low, every), (high, every)), 3: ((every, high), (every, low))}
    return pairs[port]
