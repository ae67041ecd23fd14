"""Inference the WaferLLM way: prefill and decode of one layer times their number, requests, longest decode.

Read in the public programs: one layer is timed; no embedding, no head; one head of width d; keys and values
at full width; dimensions padded up to the grid.
"""

from __future__ import annotations

from wafergpt.wafer.analytic.parameters import PARAMETERS, value
from wafergpt.wafer.analytic.programs import (
    STAGE_CYCLES,
    all_reduce_cycles,
    ceil_div,
    gemm_step_cycles,
    shift_cycles,
    vector_matrix_cycles,
)
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2, Arch, Quantity


def decode_layer_cycles(
    shape: Shape, *, context: int, p: int, parameters: dict[str, Quantity] = PARAMETERS
) -> float:
    """One token through one layer on p x p PEs: seven vector-matrix products, ten all-reduces, divisions."""
    k, s, f = ceil_div(shape.d_model, p), ceil_div(context, p), ceil_div(shape.d_ffn, p)
    lengths = [1, 3 * k, s, 1, 1, k, k, 1, (2 if shape.gated_ffn else 1) * f, k]
    reduces = sum(all_reduce_cycles(n, p, parameters) for n in lengths)
    products = [(k, k)] * 4 + [(k, s), (s, k)] + [(k, f)] * (2 if shape.gated_ffn else 1) + [(f, k)]
    local = sum(vector_matrix_cycles(a, b, parameters) for a, b in products)
    divisions = s + 2 * k + 7  # exponentials, gate, two norms, softmax
    return reduces + local + divisions * value("division_cycles", parameters)


def prefill_layer_cycles(
    shape: Shape, *, seq_len: int, p: int, parameters: dict[str, Quantity] = PARAMETERS
) -> float:
    """A prompt through one layer on p x p PEs: nine GEMMs by cyclic shifts, the scores with row reduces."""
    k, s, f = ceil_div(shape.d_model, p), ceil_div(seq_len, p), ceil_div(shape.d_ffn, p)
    n_up = 2 if shape.gated_ffn else 1
    shapes = [(s, k, k)] * 4 + [(s, s, k)] + [(s, k, f)] * n_up + [(s, f, k)]
    total = sum(p * gemm_step_cycles(m, a, n, parameters) for m, a, n in shapes)
    total += sum((p // 2) * shift_cycles(m * a, parameters) for m, a, _ in shapes)
    reduce_along_row = (p // 2) * STAGE_CYCLES + ceil_div(s * s, 2)
    total += p * (gemm_step_cycles(s, k, s, parameters) + reduce_along_row)
    divisions = s * s + 2 * s * k + 7 * s
    return total + divisions * value("division_cycles", parameters)


def decode_tokens_per_s(shape: Shape, *, context: int, p: int, arch: Arch = WSE2) -> float:
    """Tokens/s of one sequence whose cache holds `context` tokens."""
    return arch.clock_hz / (shape.n_layers * decode_layer_cycles(shape, context=context, p=p))


def prefill_tokens_per_s(shape: Shape, *, seq_len: int, p: int, arch: Arch = WSE2) -> float:
    """Prompt tokens/s."""
    return seq_len * arch.clock_hz / (shape.n_layers * prefill_layer_cycles(shape, seq_len=seq_len, p=p))


def request_tokens_per_s(
    shape: Shape, *, in_len: int, out_len: int, grids: tuple[int, int], arch: Arch = WSE2
) -> float:
    """Output tokens per second of a whole request: prefill, re-layout of the weights, decode; batch 1.

    `grids`: edges of the prefill and of the decode square. The cache is laid out for in + out tokens from the
    start. The re-layout moves every weight once over the wafer's middle (one wavelet per row and cycle).
    """
    prefill = in_len / prefill_tokens_per_s(shape, seq_len=in_len, p=grids[0], arch=arch)
    decode = out_len / decode_tokens_per_s(shape, context=in_len + out_len, p=grids[1], arch=arch)
    weights = 2.0 * shape.n_layers * shape.layer_parameters
    move = weights / (min(arch.width, arch.height) * arch.link_bits / 8 * arch.clock_hz)
    return out_len / (prefill + move + decode)


def max_decode_tokens(shape: Shape, *, p: int, shifted: bool, arch: Arch = WSE2) -> float:
    """Longest decode: tokens until one row of PEs is full, or (`shifted`) until all p rows are.

    The layers are spread over as many p x p regions as the wafer holds; what their weights and the program
    leave of a PE's SRAM takes the keys and values of its columns.
    """
    regions = max(1, arch.n_pes // (p * p))
    weights = 2.0 * shape.n_layers * shape.layer_parameters / (regions * p * p)
    free = arch.sram_bytes - value("program_bytes") - weights
    per_token = 2.0 * 2.0 * shape.kv_width * shape.n_layers / (regions * p)
    return max(0.0, free / per_token) * (p if shifted else 1)


def inference_fits(shape: Shape, *, context: int, arch: Arch = WSE2) -> bool:
    """Whether weights (16 bit; vocabulary twice, learned positions) and one sequence's cache fit in SRAM."""
    positions = 0 if shape.gated_ffn else context
    weights = 2.0 * (shape.n_parameters + (shape.vocab + positions) * shape.d_model)
    cache = 4.0 * context * shape.kv_width * shape.n_layers
    return weights + cache <= arch.n_pes * (arch.sram_bytes - value("program_bytes"))
