"""Where a GPT's weights lie on the mesh: which tile of which matrix is in which PE (copies only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.programs.tiles import split

FLOAT_BYTES = 4
# matrix [out, in]: along which axis of PEs its rows and its columns are cut
_MATRICES = {
    "attn.c_attn": ("y", "x"),
    "attn.c_proj": ("x", "y"),
    "mlp.c_fc": ("y", "x"),
    "mlp.c_proj": ("x", "y"),
}


@dataclass(frozen=True, kw_only=True)
class GPTShape:
    """What the mesh must know of a GPT. n_positions: tokens that it has room for; gelu: "erf" or "tanh"."""

    n_layers: int
    d_model: int
    n_heads: int
    d_ffn: int
    vocab_size: int
    n_positions: int
    gelu: str
    attention_scale: float
    layer_norm_eps: float = 1e-5
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0

    def check(self, width: int, height: int) -> None:
        """Raise ProgramError unless everything divides into width x height PEs."""
        pairs = (
            *(("d_model", self.d_model, "width", width), ("d_model", self.d_model, "height", height)),
            *(("d_ffn", self.d_ffn, "height", height), ("vocab_size", self.vocab_size, "height", height)),
            *(
                ("n_positions", self.n_positions, "height", height),
                ("height", height, "n_heads", self.n_heads),
            ),
        )
        for name, value, divisor_name, divisor in pairs:
            if divisor < 1 or value % divisor:
                raise ProgramError(f"{name} {value} does not divide by {divisor_name} {divisor}")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A weight on the mesh. shape (rows, columns), a vector (n,); the axis of PEs ("x", "y") along which each
    dimension is cut; tile: what one PE holds of it; n_copies: PEs that hold the same part."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    tile: tuple[int, ...]
    n_copies: int

    @property
    def bytes_per_pe(self) -> int:
        """Float32 bytes of it in every PE."""
        return FLOAT_BYTES * int(np.prod(self.tile))

    def part(self, x: int, y: int) -> tuple[tuple[int, int], ...]:
        """First and past-the-last index that PE (x, y) holds, for each dimension. Of c_attn the rows of q
        are given; it holds those d_model and 2 d_model further on, k's and v's, too."""
        at = {"x": x, "y": y}
        sizes = (self.tile[0] // 3, *self.tile[1:]) if "c_attn" in self.name else self.tile
        return tuple((at[axis] * n, (at[axis] + 1) * n) for axis, n in zip(self.axes, sizes, strict=True))


def placements(shape: GPTShape, width: int, height: int) -> tuple[Placed, ...]:
    """Every weight of the model, in its order."""
    d, size = shape.d_model, {"x": width, "y": height}
    found = []

    def add(name: str, dimensions: tuple[int, ...], axes: tuple[str, ...]) -> None:
        tile = tuple(n // size[axis] for n, axis in zip(dimensions, axes, strict=True))
        copies = 1 if len(axes) == 2 else width * height // size[axes[0]]
        found.append(Placed(name=name, shape=dimensions, axes=axes, tile=tile, n_copies=copies))

    add("wte.weight", (shape.vocab_size, d), ("y", "x"))
    add("wpe.weight", (shape.n_positions, d), ("y", "x"))
    for layer in range(shape.n_layers):
        for norm, pair in (("ln_1", ("attn.c_attn", "attn.c_proj")), ("ln_2", ("mlp.c_fc", "mlp.c_proj"))):
            for kind in ("weight", "bias"):
                add(f"h.{layer}.{norm}.{kind}", (d,), ("x",))
            for name in pair:
                rows = {"attn.c_attn": 3 * d, "mlp.c_fc": shape.d_ffn}.get(name, d)
                columns = shape.d_ffn if name == "mlp.c_proj" else d
                add(f"h.{layer}.{name}.weight", (rows, columns), _MATRICES[name])
                add(f"h.{layer}.{name}.bias", (rows,), _MATRICES[name][:1])
    add("ln_f.weight", (d,), ("x",))
    add("ln_f.bias", (d,), ("x",))
    return tuple(found)


def place_weights(
    weights: Mapping[str, Any], shape: GPTShape, width: int, height: int
) -> dict[str, NDArray[Any]]:
    """Array name in the PEs' memory -> [height, width, length] (or what broadcasts to it); copies only."""
    size = {"x": width, "y": height}
    placed = {
        "wte": split(weights["wte.weight"], height, width),
        "wpe": split(weights["wpe.weight"][: shape.n_positions], height, width),
    }
    norms = [f"h.{layer}.{norm}" for layer in range(shape.n_layers) for norm in ("ln_1", "ln_2")]
    for kind in ("weight", "bias"):
        parts = [_by(weights[f"{name}.{kind}"], "x", size) for name in (*norms, "ln_f")]
        placed[f"ln.{kind}"] = np.concatenate(parts, axis=-1)
    for name, (rows, columns) in _MATRICES.items():
        tiles, biases = [], []
        for layer in range(shape.n_layers):
            weight, bias = (weights[f"h.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
            if name == "attn.c_attn":
                weight, bias = _by_part(weight, height), _by_part(bias, height)
            tile = split(weight, size[rows], size[columns])
            tiles.append(tile if rows == "y" else tile.transpose(1, 0, 2))
            biases.append(_by(bias, rows, size))
        placed[f"{name}.weight"] = np.concatenate(tiles, axis=-1)
        placed[f"{name}.bias"] = np.concatenate(biases, axis=-1)
    return placed


def _by(vector: NDArray[Any], axis: str, size: Mapping[str, int]) -> NDArray[Any]:
    """A vector cut over columns ("x") or rows ("y") of PEs, as it broadcasts."""
    return vector.reshape((1, size["x"], -1) if axis == "x" else (size["y"], 1, -1))


def _by_part(qkv: NDArray[Any], height: int) -> NDArray[Any]:
    """Rows [q, k, v] reordered to [q, k, v of part 0, q, k, v of part 1, ...]."""
    parts = qkv.reshape(3, height, -1, *qkv.shape[1:])
    return parts.swapaxes(0, 1).reshape(qkv.shape)
