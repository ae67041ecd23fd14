"""The machine's matmul peak, measured: what a training speed is a share of."""

from __future__ import annotations

import time

import torch

from wafergpt.training.config import Precision

# [M, K] x [K, N] of a 111M model's projections at 2,048 tokens, the size at which a CPU's GEMM peaks.
_PEAK_SHAPES = ((2048, 768, 2304), (2048, 3072, 768))


def measure_matmul_peak(precision: Precision, device: torch.device, duration_s: float = 0.5) -> float:
    """FLOP/s of the fastest matrix product seen in about `duration_s`, in the run's compute type."""
    dtype = torch.float32 if precision is Precision.FP32 else torch.bfloat16
    best = 0.0
    for m, k, n in _PEAK_SHAPES:
        a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((m, k), (k, n)))
        out = torch.empty(m, n, dtype=dtype, device=device)
        until = time.perf_counter() + duration_s / len(_PEAK_SHAPES)
        while True:
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            best = max(best, 2.0 * m * k * n / (now - started))
            if now >= until:
                break
    return best
