"""Which rectangle of PEs each operator would have if a whole transformer were laid out on the wafer at once.

Assumed: areas in proportion to FLOPs, so that all operators take as long (what a pipeline of layers aims at);
neighbours in the model are neighbours on the wafer. The vendor's placer is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class _Item(NamedTuple):
    operator: str
    n_flops: float
    weight_bytes: float
    cache_bytes: float


def lay_out(
    shape: Shape, *, context: int, arch: Arch = WSE2, bytes_per_parameter: float = 2.0
) -> tuple[Region, ...]:
    """The regions, disjoint and without a gap, in the model's order; those of a block make a rectangle.

    `context`: positions of one sequence, whose keys and values (16 bit) the attention's regions hold;
    `bytes_per_parameter`: 2 to infer, 16 to train. Raises ConfigError when there are more operators than
    the mesh can be cut into.
    """
    blocks = [_block(shape, context, bytes_per_parameter)] * shape.n_layers
    table = float(shape.vocab * shape.d_model)
    if table:
        blocks = [*blocks, [_Item(HEAD, 2.0 * table, bytes_per_parameter * table, 0.0)]]
    found = []
    whole = (0, 0, arch.width, arch.height)
    for place, block_at in enumerate(_cut([sum(i.n_flops for i in items) for items in blocks], whole)):
        items = blocks[place]
        for item, (x, y, width, height) in zip(
            items, _cut([i.n_flops for i in items], block_at), strict=True
        ):
            found.append(
                Region(
                    operator=item.operator,
                    block=None if item.operator == HEAD else place,
                    x=x,
                    y=y,
                    width=width,
                    height=height,
                    n_flops=item.n_flops,
                    weight_bytes=item.weight_bytes,
                    cache_bytes=item.cache_bytes,
                )
            )
    return tuple(found)


def memory_parts(regions: Sequence[Region], arch: Arch = WSE2) -> dict[str, NDArray[np.float64]]:
    """Code, weights and cache: bytes of each in every PE [height, width]."""
    size = (arch.height, arch.width)
    parts = {"code": np.full(size, value("program_bytes"))} | {
        p: np.zeros(size) for p in ("weights", "cache")
    }
    for region in regions:
        at = (slice(region.y, region.y + region.height), slice(region.x, region.x + region.width))
        parts["weights"][at] = region.weight_bytes / region.n_pes
        parts["cache"][at] = region.cache_bytes / region.n_pes
    return parts


def fits(regions: Sequence[Region], arch: Arch = WSE2) -> bool:
    """Whether every region's PEs have room for its bytes and the program."""
    return all(region.bytes_per_pe + value("program_bytes") <= arch.sram_bytes for region in regions)


def _block(shape: Shape, context: int, bytes_per_parameter: float) -> list[_Item]:
    """The operators of one layer."""
    d, up = shape.d_model, (2 if shape.gated_ffn else 1) * shape.d_ffn

    def product(operator: str, weights: int) -> _Item:
        return _Item(operator, 2.0 * weights, bytes_per_parameter * weights, 0.0)

    return [
        product("qkv", d * (d + 2 * shape.kv_width)),
        _Item("attention", 4.0 * context * d, 0.0, 2.0 * 2.0 * context * shape.kv_width),
        product("projection", d * d),
        product("ffn up", d * up),
        product("ffn down", shape.d_ffn * d),
    ]


Rectangle = tuple[int, int, int, int]  # x, y, width, height


def _cut(sizes: Sequence[float], rectangle: Rectangle) -> list[Rectangle]:
    """One rectangle for each size: halve the sizes, and the rectangle across its longer edge alike."""
    if len(sizes) == 1:
        return [rectangle]
    require(max(rectangle[2:]) > 1, "the model has more operators than this mesh can be cut into")
    sums = list(accumulate(sizes))
    n_first = min(range(1, len(sizes)), key=lambda n: abs(sums[n - 1] - sums[-1] / 2))
    share = sums[n_first - 1] / sums[-1]
    x, y, width, height = rectangle
    if width >= height:
        edge = min(max(round(share * width), 1), width - 1)
        one, other = (x, y, edge, height), (x + edge, y, width - edge, height)
    else:
        edge = min(max(round(share * height), 1), height - 1)
        one, other = (x, y, width, edge), (x, y + edge, width, height - edge)
    return _cut(sizes[:n_first], one) + _cut(sizes[n_first:], other)
