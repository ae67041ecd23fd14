"""Operators in the wafer's number format: what they read and what they give is rounded, never what they hold.

A fused operator (a product, an attention, a LayerNorm) sums in the host's precision and rounds once at its
end. Its statistics (log-sum-exp, mean, reciprocal deviation) stay as they are, and so does all that the
optimiser does, which keeps 32-bit weights and state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wafergpt.devices.numerics import Format
from wafergpt.devices.tracking import Memory

# The first result is the value; the others are statistics for the backward pass.
ONLY_FIRST = frozenset(
    {
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_fused_rms_norm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    }
)

# They only move values, so rounding what comes out is enough: a look-up need not round its whole table.
MOVES = frozenset({"embedding", "index_select", "index", "gather", "clone", "cat", "stack", "_to_copy"})


def round_inputs(arguments: Any, form: Format, memory: Memory, written: set[int]) -> Any:
    """The arguments with every real tensor in the format, but for those written to (by id)."""
    if isinstance(arguments, torch.Tensor):
        x = arguments
        keep = id(x) in written or not x.is_floating_point() or x.is_nested or memory.is_rounded(x)
        # some kernels ask whether a gradient is wanted, and leave out what it needs
        return x if keep else form.round(x).requires_grad_(x.requires_grad)
    if isinstance(arguments, list | tuple):
        return type(arguments)(round_inputs(x, form, memory, written) for x in arguments)
    if isinstance(arguments, dict):
        return {name: round_inputs(x, form, memory, written) for name, x in arguments.items()}
    return arguments


def round_results(result: Any, name: str, form: Format, written: set[int]) -> Any:
    """The results in the format: new tensors, but those that were written to keep their memory."""
    if isinstance(result, torch.Tensor):
        return _rounded(result, form, written)
    if isinstance(result, list | tuple) and result:
        if name in ONLY_FIRST:
            return type(result)((round_results(result[0], "", form, written), *result[1:]))
        return type(result)(round_results(x, "", form, written) for x in result)
    return result


def round_written(tensors: list[Tensor], form: Format) -> None:
    """What an in-place operator wrote, in place."""
    for x in tensors:
        if x.is_floating_point():
            flat = x.values() if x.is_nested else x
            flat.copy_(form.round(flat))


def _rounded(x: Tensor, form: Format, written: set[int]) -> Tensor:
    if id(x) in written or not x.is_floating_point():
        return x
    if x.is_nested:  # rows of different lengths: a new tensor, rounded where it is
        round_written([x], form)
        return x
    return form.round(x)
