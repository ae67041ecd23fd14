"""Arithmetic of a PE on arrays of raw 32-bit words: the definition that the native core's `alu.h` repeats.

Float32 throughout, every operation rounded; a NaN that arises has one pattern. Exp and tanh are Cephes'
polynomials (relative error below 3e-7), erf is Abramowitz and Stegun 7.1.26 (absolute error below 2e-7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.isa import Alu, Cond, Int

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]

NAN_BITS = np.uint32(0x7FC00000)
HALF_NAN = np.uint16(0x7E00)


def as_float(words: Words) -> Floats:
    """The float32 that the words hold."""
    return words.view(np.float32)


def as_bits(values: Floats) -> Words:
    """Float32 as words, every NaN the same."""
    return np.where(np.isnan(values), NAN_BITS, values.view(np.uint32))


def half_to_bits(halves: NDArray[np.uint16]) -> Words:
    """Float16 words as float32 words."""
    return as_bits(halves.view(np.float16).astype(np.float32))


def bits_to_half(words: Words) -> NDArray[np.uint16]:
    """Float32 words rounded to float16 words, every NaN the same."""
    values = as_float(words)
    return np.where(np.isnan(values), HALF_NAN, values.astype(np.float16).view(np.uint16))


def _power_of_two(k: Ints) -> Floats:
    return ((k + 127).astype(np.uint32) << np.uint32(23)).view(np.float32)


def exp_f32(x: Floats) -> Floats:
    """e to the x."""
    inside = (x <= np.float32(88.72283)) & (x >= np.float32(-103.97208))
    safe: Floats = np.where(inside, x, np.float32(0))
    k: Floats = np.rint(safe * np.float32(1.44269504))
    r = safe - k * np.float32(0.693359375)
    r = r - k * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + np.float32(coefficient)
    y = y * (r * r)
    y = y + r
    y = y + np.float32(1)
    whole = k.astype(np.int32)
    half = whole >> 1
    y = y * _power_of_two(half) * _power_of_two(whole - half)
    y = np.where(x > np.float32(88.72283), np.float32(np.inf), y)
    y = np.where(x < np.float32(-103.97208), np.float32(0), y)
    return np.where(np.isnan(x), x, y).astype(np.float32)


def tanh_f32(x: Floats) -> Floats:
    """Hyperbolic tangent."""
    size = np.abs(x)
    far = np.float32(1) - np.float32(2) / (exp_f32(size + size) + np.float32(1))
    far = np.where(x < 0, -far, far)
    z = x * x
    y = np.float32(-5.70498872745e-3) * z + np.float32(2.06390887954e-2)
    for coefficient in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        y = y * z + np.float32(coefficient)
    y = y * z
    return np.where(size >= np.float32(0.625), far, y * x + x).astype(np.float32)


def erf_f32(x: Floats) -> Floats:
    """Error function."""
    size = np.abs(x)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * size)
    y = np.float32(1.061405429) * t + np.float32(-1.453152027)
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
        y = y * t + np.float32(coefficient)
    y = y * t
    y = np.float32(1) - y * exp_f32(-(size * size))
    return np.where(x < 0, -y, y).astype(np.float32)


def gelu_f32(x: Floats) -> Floats:
    """GELU in its tanh form."""
    inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * (x * x * x))
    return np.float32(0.5) * x * (np.float32(1) + tanh_f32(inner))


def _to_int(x: Floats) -> Words:
    inside = (x < np.float32(2147483648.0)) & (x > np.float32(-2147483648.0))
    y = np.where(inside, x, np.float32(0)).astype(np.int32)
    y = np.where(x >= np.float32(2147483648.0), np.int32(2**31 - 1), y)
    return np.where(x <= np.float32(-2147483648.0), np.int32(-(2**31)), y).view(np.uint32)


def alu(mode: Alu, ra: Words, rb: Words, rc: Words) -> Words:
    """An elementwise operation on words that hold float32 (I2F: int32)."""
    a, b = as_float(ra), as_float(rb)
    match mode:
        case Alu.MOV:
            return ra
        case Alu.MAX:
            return np.where(a > b, ra, rb)
        case Alu.MIN:
            return np.where(a < b, ra, rb)
        case Alu.F2I:
            return _to_int(a)
        case Alu.ADD:
            y = a + b
        case Alu.SUB:
            y = a - b
        case Alu.MUL:
            y = a * b
        case Alu.FMAC:
            y = a * b + as_float(rc)
        case Alu.DIV:
            y = a / b
        case Alu.SQRT:
            y = np.sqrt(a)
        case Alu.RSQRT:
            y = np.float32(1) / np.sqrt(a)
        case Alu.EXP:
            y = exp_f32(a)
        case Alu.TANH:
            y = tanh_f32(a)
        case Alu.ERF:
            y = erf_f32(a)
        case Alu.GELU:
            y = gelu_f32(a)
        case _:
            y = ra.view(np.int32).astype(np.float32)
    return as_bits(y)


def int_alu(mode: Int, a: Ints, b: Ints) -> Ints:
    """An integer operation on registers."""
    x, y, shift = a.astype(np.int64), b.astype(np.int64), b & 31
    safe = np.where(y == 0, 1, y)
    match mode:
        case Int.ADD:
            z = x + y
        case Int.SUB:
            z = x - y
        case Int.MUL:
            z = x * y
        case Int.AND:
            z = x & y
        case Int.OR:
            z = x | y
        case Int.XOR:
            z = x ^ y
        case Int.SHL:
            z = x << shift
        case Int.SHR:
            z = x >> shift
        case Int.DIV:
            z = np.where(y == 0, 0, x // safe)
        case Int.MOD:
            z = np.where(y == 0, 0, x - (x // safe) * y)
        case Int.MIN:
            z = np.minimum(x, y)
        case _:
            z = np.maximum(x, y)
    return z.astype(np.int32)


def vector_int(mode: Alu, a: Words, b: Words) -> Words:
    """An elementwise operation whose target is int32."""
    x, y = a.view(np.int32), b.view(np.int32)
    match mode:
        case Alu.ADD:
            return a + b
        case Alu.SUB:
            return a - b
        case Alu.MUL:
            return a * b
        case Alu.MAX:
            return np.where(x > y, a, b)
        case Alu.MIN:
            return np.where(x < y, a, b)
    return a


def condition(mode: Cond, a: Words, b: Words) -> Mask:
    """Whether a branch is taken."""
    x, y = a.view(np.int32), b.view(np.int32)
    match mode:
        case Cond.EQ:
            holds: Mask = x == y
        case Cond.NE:
            holds = x != y
        case Cond.LT:
            holds = x < y
        case Cond.GE:
            holds = x >= y
        case Cond.FLT:
            holds = as_float(a) < as_float(b)
        case _:
            holds = as_float(a) >= as_float(b)
    return holds
