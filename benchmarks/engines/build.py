"""Each engine by name: a function that does one optimiser step and returns its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engines.shapes import BETAS, CLIP_NORM, PEAK_LR, WEIGHT_DECAY, Shape

PEERS = ("nano", "nano-compiled", "transformers")
OURS = ("ours-fp32", "ours-bf16", "ours-int8")
PEAK = "peak"  # not an engine: the machine's matmul rates, measured beside them

Step = Callable[[], float]


def build(name: str, shape: Shape, micro_batch: int) -> Step:
    """The engine `name` on random tokens, freshly initialised."""
    if name in OURS:
        return _ours(name.removeprefix("ours-"), shape, micro_batch)
    return _peer(name, shape, micro_batch)


def _ours(precision: str, shape: Shape, micro_batch: int) -> Step:
    from wafergpt.model.config import GPTConfig
    from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig, TrainConfig
    from wafergpt.training.loop import RandomBatches, prepare

    config = TrainConfig(
        model=GPTConfig(
            n_layers=shape.n_layers, d_model=shape.d_model, n_heads=shape.n_heads,
            vocab_size=shape.vocab_size, max_seq_len=shape.seq_len,
        ),
        data=DataConfig(path=Path("random"), seq_len=shape.seq_len),
        optim=OptimConfig(peak_lr=PEAK_LR, betas=BETAS, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM),
        schedule=ScheduleConfig(warmup_steps=0, total_steps=1_000_000),
        batch_size=micro_batch, micro_batch_size=micro_batch, precision=Precision(precision),
    )  # fmt: skip
    trainer = prepare(config, batches=RandomBatches(shape.vocab_size, shape.seq_len))

    def step() -> float:
        report = trainer.step()
        assert report is not None and not report.skipped
        return report.loss

    return step


def _peer(name: str, shape: Shape, micro_batch: int) -> Step:
    """nanoGPT's loop: bfloat16 autocast, fused AdamW with no decay on vectors, clipping, no accumulation."""
    import torch

    model, loss_of = _transformers(shape) if name == "transformers" else _nano(shape, name == "nano-compiled")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=BETAS, fused=True)
    random = np.random.default_rng(0)

    def step() -> float:
        window = torch.from_numpy(random.integers(0, shape.vocab_size, (micro_batch, shape.seq_len + 1)))
        ids, labels = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _nano(shape: Shape, compiled: bool):
    import torch

    from engines.nano import NanoGPT

    model = NanoGPT(shape)
    return model, torch.compile(model) if compiled else model


def _transformers(shape: Shape):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape.n_layers, n_embd=shape.d_model, n_head=shape.n_heads, vocab_size=shape.vocab_size,
        n_positions=shape.seq_len, activation_function="gelu", use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    # It shifts the labels itself, so it predicts T - 1 of the T tokens that are counted: to its favour.
    return model, lambda ids, _labels: model(input_ids=ids, labels=ids).loss


def matmul_peaks(duration_s: float) -> dict[str, float]:
    """FLOP/s (int8: operations/s) of the fastest product seen: torch's float32 and bfloat16, our int8."""
    import time

    import torch

    from wafergpt.ops import cpu, dispatch
    from wafergpt.training.config import Precision
    from wafergpt.training.peak import measure_matmul_peak

    device = torch.device("cpu")
    peaks = {p.value: measure_matmul_peak(p, device, duration_s) for p in (Precision.FP32, Precision.BF16)}
    if not dispatch.int8_supported():
        return peaks
    m, k, n = 2048, 768, 2304
    packed = cpu.Int8Weight.pack(torch.ones(n, k, dtype=torch.bfloat16))
    rows = cpu.Int8Rows.of(torch.ones(m, k, dtype=torch.bfloat16), packed.depth, False)
    best, until = 0.0, time.perf_counter() + duration_s
    while time.perf_counter() < until:
        started = time.perf_counter()
        rows.times(packed)
        best = max(best, 2.0 * m * k * n / (time.perf_counter() - started))
    return peaks | {"int8": best}
