"""Operations on transposed views, as weights mapped from a Hugging Face file are: the same as on copies.

Our kernels go by addresses. One that forgot to ask for order would read another matrix: nothing raises, the
numbers are wrong.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wafergpt.ops import dispatch
from wafergpt.ops.reference import AdamWStep


def transposed(n_out: int, n_in: int, dtype: torch.dtype) -> Tensor:
    """[n_out, n_in] with the memory of [n_in, n_out]."""
    made = torch.randn(n_in, n_out, generator=torch.Generator().manual_seed(0)).to(dtype).T
    assert not made.is_contiguous()
    return made


@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
def test_linear(int8: bool) -> None:
    if int8 and not dispatch.int8_supported():
        pytest.skip("no AVX-512 VNNI or no compiler")
    weight, bias = transposed(96, 64, torch.bfloat16), torch.randn(96)
    x = torch.randn(8, 64).bfloat16()
    assert torch.equal(
        dispatch.linear(x, weight, bias, int8), dispatch.linear(x, weight.contiguous(), bias, int8)
    )


@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
def test_head_and_loss(int8: bool) -> None:
    if int8 and not dispatch.int8_supported():
        pytest.skip("no AVX-512 VNNI or no compiler")
    weight, labels = transposed(96, 64, torch.bfloat16), torch.arange(40)
    hidden = torch.randn(40, 64).bfloat16()
    losses = [
        dispatch.linear_cross_entropy(hidden, w, labels, int8=int8)[0] for w in (weight, weight.contiguous())
    ]
    assert torch.equal(*losses)


def test_adamw() -> None:
    gradient = torch.randn(96, 64)
    by = AdamWStep(step=1, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_scale=1.0)
    results = []
    for layout in (torch.preserve_format, torch.contiguous_format):
        master = transposed(96, 64, torch.float32).clone(memory_format=layout)
        moments = torch.zeros_like(master), torch.zeros_like(master)
        dispatch.adamw_step(master, master, gradient, *moments, by)
        results.append(master)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
