"""Training time: weights streamed layer by layer, or the whole model laid out on the wafer as a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from wafergpt.wafer.analytic.parameters import PARAMETERS, release_efficiency, value
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2, Arch, Quantity


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training iteration on one system. Seconds of the whole step, split by what bounds it."""

    total_s: float
    compute_s: float
    weight_streaming_s: float  # of the delivery, what compute does not hide
    exposed_s: float


def weight_streaming(
    shape: Shape,
    *,
    batch: float,
    seq_len: int,
    arch: Arch = WSE2,
    release: str | None = None,
    density: float = 1.0,
    parameters: dict[str, Quantity] = PARAMETERS,
) -> Step:
    """One iteration of `batch` sequences per system; `density`: share of weights that are not zero.

    Per layer: exposed + max(delivery latency + bytes / link, compute). The head is one more layer of
    compute (its cost factor) whose weights stay.
    """
    rate = value("training_share_of_peak", parameters) * arch.peak_flops_per_s * release_efficiency(release)
    n_tokens = batch * seq_len
    attention = n_tokens * 12.0 * seq_len * shape.d_model
    layer = ((shape.layer_flops(n_tokens, seq_len) - attention) * density + attention) / rate
    n_bytes = value("streamed_bytes_per_parameter", parameters) * shape.layer_parameters * density
    delivery = value("layer_delivery_s", parameters) + n_bytes / arch.io_bytes_per_s
    head = value("head_cost_factor", parameters) * shape.head_flops(n_tokens) / rate
    exposed = shape.n_layers * value("layer_exposed_s", parameters)
    compute = shape.n_layers * layer + head
    waiting = shape.n_layers * max(0.0, delivery - layer)
    return Step(
        total_s=compute + waiting + exposed, compute_s=compute, weight_streaming_s=waiting, exposed_s=exposed
    )


def pipelined_samples_per_s(
    shape: Shape, *, seq_len: int, arch: Arch = WSE2, release: str | None = None
) -> float:
    """Samples/s when every layer has its own rectangle of PEs (software up to release 1.8)."""
    macs = (shape.n_layers * shape.layer_flops(seq_len, seq_len) + shape.head_flops(seq_len)) / 2.0
    active = arch.n_pes * value("pipelined_active_share")
    rate = active * value("pipelined_macs_per_cycle") * arch.clock_sdk_hz * value("pipelined_balance")
    return rate / macs


def working_bytes(shape: Shape, *, seq_len: int) -> float:
    """Bytes that one sequence holds on the wafer while a layer trains: activations and scores, 16 bit."""
    tensors = 16.0 * shape.d_model + (3.0 if shape.gated_ffn else 2.0) * shape.d_ffn
    scores = shape.n_heads * seq_len
    return 2.0 * seq_len * (tensors + scores)


def training_fits(shape: Shape, *, seq_len: int, arch: Arch = WSE2) -> bool:
    """Whether a micro-batch of one sequence fits in SRAM; weights and optimiser state stay in MemoryX."""
    return working_bytes(shape, seq_len=seq_len) <= 0.9 * arch.n_pes * arch.sram_bytes
