"""Which rectangle of PEs each operator would have if a whole transformer were laid out on the wafer at once.

Assumed: areas in proportion to FLOPs, so that all operators take as long (what a pipeline of layers aims at);
neighbours in the model are neighbours on the wafer. The vendor's placer is not published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wafergpt.config import require
from wafergpt.wafer.analytic.parameters import value
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2, Arch

HEAD = "embedding and head"
OPERATORS = ("qkv", "attention", "projection", "ffn up", "ffn down", HEAD)


@dataclass(frozen=True, kw_only=True)
class Region:
    """The PEs of one operator: `width` x `height` of them from (x, y) on. `block` None: of no layer.

    Bytes are of the whole region, FLOPs of one token's forward pass.
    """

    operator: str
    block: int | None
    x: int
    y: int
    width: int
    height: int
    n_flops: float
    weight_bytes: float
    cache_bytes: float

    @property
    def n_pes(self) -> int:
        """PEs of the region."""
        return self.width * self.height

    @property
    def bytes_per_pe(self) -> float:
        """What each of its PEs holds."""
        return (self.weight_bytes + self.cache_bytes) / self.n_pes


@dataclass(frozen=True, kw_only=True)
class _Item:
    operator: str
    block: int | None
    n_flops: float
    weights: float
    cached: float


def lay_out(
    shape: Shape, *, context: int, arch: Arch = WSE2, bytes_per_parameter: float = 2.0
) -> tuple[Region, ...]:
    """The regions, disjoint and without a gap, in the model's order.

    `context`: positions of one sequence, whose keys and values (16 bit) the attention's regions hold;
    `bytes_per_parameter`: 2 to infer, 16 to train. Raises ConfigError when there are more operators than
    the wafer's PEs can be cut into.
    """
    items = _items(shape, context)
    found: list[Region] = []
    for item, (x, y, width, height) in _cut(items, (0, 0, arch.width, arch.height)):
        found.append(
            Region(
                operator=item.operator,
                block=item.block,
                x=x,
                y=y,
                width=width,
                height=height,
                n_flops=item.n_flops,
                weight_bytes=bytes_per_parameter * item.weights,
                cache_bytes=2.0 * item.cached,
            )
        )
    return tuple(found)


def fits(regions: Sequence[Region], arch: Arch = WSE2) -> bool:
    """Whether every region's PEs have room for its bytes and the program."""
    return all(region.bytes_per_pe + value("program_bytes") <= arch.sram_bytes for region in regions)


def _items(shape: Shape, context: int) -> list[_Item]:
    """Operators of all layers, then embedding and head (one matrix)."""
    d, up = shape.d_model, (2 if shape.gated_ffn else 1) * shape.d_ffn
    matrices = {
        "qkv": d * (d + 2 * shape.kv_width),
        "projection": d * d,
        "ffn up": d * up,
        "ffn down": shape.d_ffn * d,
    }
    items = []
    for block in range(shape.n_layers):
        for operator in OPERATORS[:-1]:
            weights = float(matrices.get(operator, 0))
            cached = 2.0 * context * shape.kv_width if operator == "attention" else 0.0
            n_flops = 4.0 * context * d if operator == "attention" else 2.0 * weights
            items.append(
                _Item(operator=operator, block=block, n_flops=n_flops, weights=weights, cached=cached)
            )
    table = float(shape.vocab * d)
    if table:
        items.append(_Item(operator=HEAD, block=None, n_flops=2.0 * table, weights=table, cached=0.0))
    return items


Rectangle = tuple[int, int, int, int]  # x, y, width, height


def _cut(items: Sequence[_Item], rectangle: Rectangle) -> list[tuple[_Item, Rectangle]]:
    """Halve the items by FLOPs and the rectangle, across its longer edge, in the same proportion."""
    if len(items) == 1:
        return [(items[0], rectangle)]
    require(max(rectangle[2:]) > 1, "the model has more operators than this mesh can be cut into")
    total = sum(item.n_flops for item in items)
    passed, n_first, best = 0.0, 1, math.inf
    for place, item in enumerate(items[:-1], 1):
        passed += item.n_flops
        if abs(passed - total / 2) < best:
            n_first, best = place, abs(passed - total / 2)
    share = sum(item.n_flops for item in items[:n_first]) / total
    x, y, width, height = rectangle
    if width >= height:
        edge = min(max(round(share * width), 1), width - 1)
        one, other = (x, y, edge, height), (x + edge, y, width - edge, height)
    else:
        edge = min(max(round(share * height), 1), height - 1)
        one, other = (x, y, width, edge), (x, y + edge, width, height - edge)
    return _cut(items[:n_first], one) + _cut(items[n_first:], other)
