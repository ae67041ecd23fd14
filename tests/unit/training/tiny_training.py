"""A training run small enough for tests: 2 layers of width 32 over random text, 5 to 20 ms a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wafergpt.data.shards import Manifest, ShardWriter
from wafergpt.model.config import GPTConfig
from wafergpt.ops import dispatch
from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig, TrainConfig

VOCAB_SIZE = 61
SEQ_LEN = 16


def write_data(folder: Path, n_train: int = 2_000, n_held_out: int = 205) -> Path:
    """A prepared folder as `wafergpt prepare` leaves it; the text is learnable: ids follow from the last."""
    random = np.random.default_rng(7)
    for part, n_tokens in (("train", n_train), ("held_out", n_held_out)):
        noise = random.integers(0, 3, n_tokens)
        ids = (np.cumsum(noise) * 7 % VOCAB_SIZE).astype(np.uint16)
        writer = ShardWriter(folder / part, VOCAB_SIZE, shard_tokens=1_500)
        writer.append(ids)
        Manifest(
            vocab_size=VOCAB_SIZE,
            end_of_text_id=VOCAB_SIZE - 1,
            tokenizer_sha256="0" * 64,
            n_tokens=n_tokens,
            n_documents=1,
            n_text_bytes=3 * n_tokens,
            shards=writer.finish(),
        ).save(folder / part)
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


def skip_unless_supported(precision: Precision) -> None:
    """int8 products need our kernels and a CPU with AVX-512 VNNI."""
    if precision is Precision.INT8 and not dispatch.int8_supported():
        pytest.skip("int8 products are not supported here: no kernels, or no AVX-512 VNNI")


def tiny_config(data: Path, **changes: object) -> TrainConfig:
    """40 steps of batch 4; `changes` replace top-level fields."""
    config = TrainConfig(
        model=GPTConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=VOCAB_SIZE, max_seq_len=SEQ_LEN),
        data=DataConfig(path=data, seq_len=SEQ_LEN),
        optim=OptimConfig(peak_lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=5, total_steps=40),
        batch_size=4,
        micro_batch_size=4,
        precision=Precision.BF16,
        seed=11,
        eval_every=10,
        eval_tokens=64,
        save_every=7,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
