"""What instructions work on: registers, arrays in a PE's memory, descriptors (DSDs), colors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.isa import TYPE_BYTES, Type

TYPES = {"f32": Type.F32, "f16": Type.F16, "i32": Type.I32}
NUMPY_TYPES: dict[Type, np.dtype[Any]] = {
    Type.F32: np.dtype("<f4"),
    Type.F16: np.dtype("<f2"),
    Type.I32: np.dtype("<i4"),
}


def type_of(name: str) -> Type:
    """`"f32"`, `"f16"` or `"i32"` as a `Type`; raises ProgramError for another name."""
    if name not in TYPES:
        raise ProgramError(f"unknown element type '{name}': f32, f16 or i32")
    return TYPES[name]


@dataclass(frozen=True)
class Reg:
    """One of a PE's sixteen 32-bit registers; holds an int32 or a float32, as the instruction takes it."""

    index: int


@dataclass(frozen=True)
class Color:
    """A virtual channel of the fabric."""

    index: int
    name: str


@dataclass(frozen=True)
class Dsd:
    """A descriptor in the PE's table; `Code.set` and `Code.advance` change it while the program runs."""

    index: int
    type: Type


class Home(Protocol):
    """The role's code that an array belongs to."""

    name: str

    def shared_view(self, array: Array, start: int, length: int, stride: int) -> Dsd:
        """A descriptor of array[start : start + length * stride : stride]."""


@dataclass(frozen=True, eq=False)
class Array:
    """A named array in a PE's memory: `length` elements from byte `address` on."""

    code: Home
    name: str
    type: Type
    length: int
    address: int

    @property
    def n_bytes(self) -> int:
        """Bytes that the elements take."""
        return self.length * TYPE_BYTES[self.type]

    def __getitem__(self, key: slice | int) -> Dsd:
        """The elements of a slice as a descriptor that is shared: do not `set` it (see `Code.view`)."""
        if isinstance(key, int):
            key = slice(key, key + 1)
        start, stop, step = key.indices(self.length)
        count = len(range(start, stop, step))
        return self.code.shared_view(self, start, count, step)


Target = Array | Dsd | Reg
Operand = Array | Dsd | Reg | float | int
