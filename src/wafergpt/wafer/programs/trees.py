"""Reduction trees over a line of PEs, and what they should cost.

A tree is a tuple `parent`: PE i sends its partial sum to PE parent[i] < i, PE 0 is the root (parent -1). A PE
takes in its children in ascending order, so the order of the additions is known (see `ordered_sum`). The
closed forms are those of Luczynski et al., "Near-Optimal Wafer-Scale Reduce", HPDC 2024: P PEs, vectors of B
wavelets, T_R = 2 cycles between core and router.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

RAMP_CYCLES = 2  # T_R, measured by the paper's authors on the machine
Tree = tuple[int, ...]


def star(n_pes: int) -> Tree:
    """Every PE sends to the root."""
    return (-1, *(0 for _ in range(1, n_pes)))


def chain(n_pes: int) -> Tree:
    """Every PE adds to what its neighbour sends and passes it on."""
    return tuple(range(-1, n_pes - 1))


def binary(n_pes: int) -> Tree:
    """At level k PEs that are odd multiples of 2^k send over 2^k hops."""
    return tuple(-1 if i == 0 else i & (i - 1) for i in range(n_pes))


def two_phase(n_pes: int, group: int = 0) -> Tree:
    """Chains within groups (of sqrt(P) if not given), then a chain over the groups' first PEs."""
    size = group or max(1, round(math.sqrt(n_pes)))
    return tuple(i - 1 if i % size else i - size if i else -1 for i in range(n_pes))


def forest(n_pes: int, tree: Tree) -> Tree:
    """`tree` over each of the groups of len(tree) PEs that n_pes divide into."""
    size = len(tree)
    return tuple(
        -1 if up < 0 else up + start for start in range(0, n_pes - n_pes % size, size) for up in tree
    )


@functools.cache
def _least_energy(n_pes: int) -> NDArray[np.float64]:
    """[P + 1, D, C]: fewest hops (per wavelet of the vector) of a tree of depth <= D, contention <= C."""
    energy = np.full((n_pes + 1, n_pes, n_pes), np.inf)
    energy[1] = 0.0
    for size in range(2, n_pes + 1):
        split = np.arange(1, size)
        first = np.full((size - 1, n_pes, n_pes), np.inf)
        first[:, :, 1:] = energy[1:size, :, :-1]  # PEs 0..i-1: the root has one message fewer to take
        last = np.full((size - 1, n_pes, n_pes), np.inf)
        last[:, 1:, :] = energy[size - 1 : 0 : -1, :-1, :]  # PEs i..: one level down
        energy[size] = (first + last + split[:, None, None]).min(axis=0)
    return energy


def auto_generated(n_pes: int, n_wavelets: int) -> Tree:
    """The tree of least modelled time, by the paper's dynamic programme over (PEs, depth, contention)."""
    if n_pes == 1:
        return (-1,)
    energy = _least_energy(n_pes)
    depth, contention = np.meshgrid(np.arange(n_pes), np.arange(n_pes), indexing="ij")
    links = n_wavelets * energy[n_pes] / (n_pes - 1) + n_pes - 1
    time = np.maximum(contention * n_wavelets, links) + (2 * RAMP_CYCLES + 1) * depth
    best_depth, best_contention = divmod(int(time.argmin()), n_pes)
    parent = [-1] * n_pes
    _split(energy, parent, (0, n_pes, best_depth, best_contention))
    return tuple(parent)


def _split(energy: NDArray[np.float64], parent: list[int], part: tuple[int, int, int, int]) -> None:
    """Fill in `parent` for PEs start..start+size-1, whose root is the first."""
    start, size, depth, contention = part
    if size == 1:
        return
    costs = [
        energy[i, depth, contention - 1] + energy[size - i, depth - 1, contention] + i for i in range(1, size)
    ]
    i = 1 + int(np.argmin(costs))
    parent[start + i] = start
    _split(energy, parent, (start, i, depth, contention - 1))
    _split(energy, parent, (start + i, size - i, depth - 1, contention))


def children(tree: Tree) -> list[list[int]]:
    """For each PE the PEs that send to it, in the order in which it takes them in."""
    found: list[list[int]] = [[] for _ in tree]
    for pe, parent in enumerate(tree):
        if parent >= 0:
            found[parent].append(pe)
    return found


def ordered_sum(tree: Tree, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The float32 sum of values [P, n] in the tree's order: exactly what the mesh computes."""
    total: list[NDArray[np.float32]] = [value.astype(np.float32) for value in values]
    sent = children(tree)
    for pe in range(len(tree) - 1, -1, -1):
        for child in sent[pe]:
            total[pe] = total[pe] + total[child]
    return total[0]


def tree_cycles(tree: Tree, n_wavelets: int) -> float:
    """max(C, E / N + L) + (2 T_R + 1) D of a tree: contention, energy, links, distance, depth."""
    n_pes = len(tree)
    if n_pes == 1:
        return 0.0
    depth = [0] * n_pes
    for pe in range(n_pes - 1, 0, -1):
        depth[tree[pe]] = max(depth[tree[pe]], depth[pe] + 1)
    hops = sum(pe - parent for pe, parent in enumerate(tree) if parent >= 0)
    contention = max(len(each) for each in children(tree)) * n_wavelets
    links = n_wavelets * hops / (n_pes - 1) + n_pes - 1
    return max(contention, links) + (2 * RAMP_CYCLES + 1) * depth[0]


def broadcast_cycles(n_pes: int, n_wavelets: int) -> int:
    """B + P + 2 T_R: a vector from one end of a line to every PE."""
    return n_wavelets + n_pes + 2 * RAMP_CYCLES


def chain_cycles(n_pes: int, n_wavelets: int) -> int:
    """B + (2 T_R + 2) (P - 1)."""
    return n_wavelets + (2 * RAMP_CYCLES + 2) * (n_pes - 1)


def star_cycles(n_pes: int, n_wavelets: int) -> int:
    """B (P - 1) + 2 T_R + 1."""
    return n_wavelets * (n_pes - 1) + 2 * RAMP_CYCLES + 1


def broadcast_2d_cycles(width: int, height: int, n_wavelets: int) -> int:
    """B + M + N - 2 + 2 T_R + 1: a vector from a corner to every PE of an M x N mesh."""
    return n_wavelets + width + height - 2 + 2 * RAMP_CYCLES + 1
