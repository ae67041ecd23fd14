"""What the parity tests of the kernels share: inputs, bounds, and the one comparison.

The expected value is `ops.reference` in float64 on the very bfloat16 inputs, so a bound covers only what
the fast path rounds. U is half an ulp of bfloat16 (8 significant bits), E of float32 (24 bits). A sum of
n float32 terms in any order errs by at most n E times the sum of the terms' magnitudes (Higham 2002,
section 4.2); +8 covers the few operations around it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wafergpt.kernels import build
from wafergpt.ops import cpu, dispatch

U = 2.0**-8
E = 2.0**-24
TINY = 2.0**-126  # below the smallest normal number both formats may flush to zero

COMPILED, TORCH = "compiled", "torch"


def need_kernels() -> None:
    """Skip, with the build's own reason, where there are no kernels."""
    if build.library() is None:
        pytest.skip(f"no compiled kernels: {build.status().reason}")


def need_attention() -> None:
    """Skip where the attention kernel cannot run."""
    need_kernels()
    if not cpu.attention_supported():
        pytest.skip("the CPU has no AVX-512 BF16")


def need_int8() -> None:
    """Skip where the int8 products cannot run."""
    need_kernels()
    if not dispatch.int8_supported():
        pytest.skip("the CPU has no AVX-512 VNNI")


def excess(actual: Tensor, expected: Tensor, bound: Tensor | float) -> float:
    """Largest |actual - expected| / bound; the comparison passes up to 1. Infinite where one is NaN."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs()
    ratio = error / (torch.as_tensor(bound, dtype=torch.float64) + TINY)
    return float(ratio.nan_to_num(nan=math.inf, posinf=math.inf).max())


def normal(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Standard normal numbers times `scale`, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def leaf(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy that takes a gradient."""
    return x.detach().clone().to(dtype or x.dtype).requires_grad_()


def labels_for(n: int, vocab_size: int, seed: int, ignored: int = 0) -> Tensor:
    """n labels, first and last of the vocabulary among them, `ignored` of them -100."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocab_size, (n,), generator=generator)
    labels[0], labels[-1] = vocab_size - 1, 0
    labels[torch.randperm(n, generator=generator)[:ignored]] = -100
    return labels


def step(x: Tensor, dim: int = 1) -> Tensor:
    """One int8 step of each row (dim 1) or column (dim 0): the largest magnitude / 127."""
    return x.double().abs().amax(dim, keepdim=True) / 127


def product_bound(a: Tensor, b: Tensor, ea: Tensor | float, eb: Tensor | float) -> Tensor:
    """|error| of a [M, K] @ b [K, N] when a errs by ea and b by eb, summed in float32 and rounded."""
    a, b = a.double(), b.double()
    ea, eb = torch.zeros_like(a) + ea, torch.zeros_like(b) + eb
    exact = a.abs() @ b.abs()
    inner = ea @ b.abs() + a.abs() @ eb + ea @ eb + (a.shape[1] + 8) * E * exact
    return inner + U * ((a @ b).abs() + inner)
