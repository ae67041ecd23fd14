"""Number formats of the wafer, as rounding of float32 and float64 tensors.

fp16 and bf16 are IEEE 754 binary16 and bfloat16, fp32 is binary32. cb16 is Cerebras's cbfloat16: 1 sign, 6
exponent and 9 mantissa bits (published). What is not published is assumed to follow IEEE 754: an exponent
bias of 31, subnormals, infinities and NaN, so the largest number is 2^32 - 2^22 and the smallest 2^-39.
Rounding is to nearest, ties to even, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wafergpt.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Format:
    """A binary floating-point format with IEEE 754's special values. `torch_dtype`: its own type, if any.

    `note`: what is assumed of it.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    torch_dtype: torch.dtype | None
    note: str = ""

    @property
    def bias(self) -> int:
        """What is added to the exponent of two to store it."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0**-self.mantissa_bits) * 2.0**self.bias

    @property
    def smallest(self) -> float:
        """The smallest number above zero, a subnormal one."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    def round(self, x: Tensor) -> Tensor:
        """The nearest number of this format for every element, in x's type; integers pass unchanged.

        Never x itself. A type with fewer bits than the format rounds the result once more.
        """
        if not x.is_floating_point() or x._is_zerotensor():  # which has no memory
            return x.clone()
        if x.layout != torch.strided and not x.is_nested:
            return self._round_values(x)
        if self.torch_dtype is not None and (x.dtype != torch.float64 or self.name == "fp32"):  # rounds once
            return x.to(self.torch_dtype, copy=True).to(x.dtype)
        if x.dtype == torch.float64:
            return self._round_float64(x)
        with torch.no_grad():  # rounding has no gradient of its own
            narrow = x.float().contiguous()
            blocks = [self._round_float32(block) for block in narrow.view(-1).split(_BLOCK)]
            return torch.empty_like(x).copy_(torch.cat(blocks).view(narrow.shape))  # x's strides

    def _round_values(self, x: Tensor) -> Tensor:
        """Of a sparse tensor those that it holds, of one in a library's own layout all."""
        if x.layout == torch.sparse_coo:
            x = x.coalesce()
            return torch.sparse_coo_tensor(x.indices(), self.round(x.values()), x.shape, is_coalesced=True)
        if x.is_mkldnn:
            return self.round(x.to_dense()).to_mkldnn()
        found = x.detach().clone()
        found.values().copy_(self.round(x.values()))
        return found

    def _round_float64(self, wide: Tensor) -> Tensor:
        """By the spacing of the format's numbers around each element: holds for every exponent of float64."""
        grid = _spacing(wide, self.mantissa_bits, 1 - self.bias)
        rounded = torch.round(wide / grid) * grid  # ties to even; a power of two divides exactly
        return self._with_infinities(rounded, wide)

    def _round_float32(self, x: Tensor) -> Tensor:
        """The same by float32's bits, for formats narrower than it in every part: a third of the time."""
        dropped = 23 - self.mantissa_bits
        bits = x.view(torch.int32)
        up = (
            (bits >> dropped).bitwise_and_(1).add_((1 << (dropped - 1)) - 1)
        )  # half a unit, ties by the last bit
        normal = up.add_(bits).bitwise_and_(-1 << dropped).view(torch.float32)
        smallest_normal = 2.0 ** (1 - self.bias)
        shift = 1.5 * self.smallest * 2.0**23  # adding it leaves no bits below the smallest subnormal
        subnormal = torch.copysign((x + shift) - shift, x)
        return self._with_infinities(torch.where(x.abs() < smallest_normal, subnormal, normal), x)

    def _with_infinities(self, rounded: Tensor, x: Tensor) -> Tensor:
        infinite = torch.copysign(x.new_tensor(torch.inf), x)
        bounded = torch.where(rounded.abs() > self.largest, infinite, rounded)
        return torch.where(x.isnan(), x, bounded)


_BLOCK = 1 << 14  # elements rounded together: they stay in a core's cache, and no thread waits for another


def _spacing(x: Tensor, mantissa_bits: int, smallest_exponent: int) -> Tensor:
    """The distance of neighbouring numbers of the format around x (float64), a power of two."""
    _, exponent = torch.frexp(x)  # |x| = f * 2^exponent, 0.5 <= f < 1
    floor = torch.clamp(exponent - 1, min=smallest_exponent)
    return torch.ldexp(torch.ones_like(x), floor - mantissa_bits)


FORMATS: dict[str, Format] = {
    "cb16": Format(
        name="cb16",
        exponent_bits=6,
        mantissa_bits=9,
        torch_dtype=None,
        note="not published: taken as in IEEE 754, and so are subnormals, infinities and rounding",
    ),
    "fp16": Format(name="fp16", exponent_bits=5, mantissa_bits=10, torch_dtype=torch.float16),
    "bf16": Format(name="bf16", exponent_bits=8, mantissa_bits=7, torch_dtype=torch.bfloat16),
    "fp32": Format(name="fp32", exponent_bits=8, mantissa_bits=23, torch_dtype=torch.float32),
}


def format_of(name: str) -> Format:
    """The format `name`. Raises ConfigError for an unknown one."""
    if name not in FORMATS:
        raise ConfigError(
            f"numerics '{name}' is unknown; allowed: exact, {', '.join(FORMATS)}"
            + did_you_mean(name, list(FORMATS))
        )
    return FORMATS[name]
