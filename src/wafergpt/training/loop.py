"""The loop is the caller's `for`: `for report in steps(config): ...` trains, one step per turn.

    trainer = prepare(config)
    for report in steps(config, trainer):
        print(report.step, report.loss)

There are no callbacks: what should happen between steps is written between steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from wafergpt.checkpoints.native import Checkpoint, load_checkpoint
from wafergpt.config import require, to_dict
from wafergpt.data.loader import Loader
from wafergpt.data.shards import ShardSet
from wafergpt.errors import CheckpointError, ConfigError, DataError
from wafergpt.model.gpt import GPT
from wafergpt.ops import dispatch
from wafergpt.training import state as training_state
from wafergpt.training.allocator import keep_freed_memory
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.training.distributed import World
from wafergpt.training.report import StepReport
from wafergpt.training.state import TrainState
from wafergpt.training.step import BatchSource, Ids, Trainer

CONFIG_DOCUMENT = "config.json"
STATE_DOCUMENT = "state.json"


def open_batches(config: TrainConfig) -> Loader:
    """The shuffled training windows of `config.data`.

    Raises DataError for missing, damaged or too short data, or ids outside the model's vocabulary.
    """
    shards = ShardSet.open(config.data.path / "train")
    if shards.vocab_size > config.model.vocab_size:
        raise DataError(
            f"'{config.data.path}' holds token ids up to {shards.vocab_size - 1}, outside the model's"
            f" vocabulary of {config.model.vocab_size}; set model.vocab_size={shards.vocab_size}"
        )
    return Loader(shards, config.data.seq_len, config.seed)


def prepare(
    config: TrainConfig,
    *,
    batches: BatchSource | None = None,
    checkpoint: Checkpoint | None = None,
    world: World | None = None,
) -> Trainer:
    """A trainer at the first step, or at `checkpoint`'s step; batches default to the shards of `config.data`.

    Raises ConfigError, DataError, or CheckpointError when the checkpoint is of another model.
    """
    world = world or World()
    batches = batches or open_batches(config)
    starts = checkpoint is None
    if checkpoint is None and config.start_from is not None:
        checkpoint = load_checkpoint(config.start_from)
        stored = checkpoint.documents.get(CONFIG_DOCUMENT)
        if not isinstance(stored, dict) or stored.get("model") != to_dict(config.model):
            raise ConfigError(f"start_from: '{checkpoint.path}' is of another model than this run's")
    if checkpoint is None:
        first_step = config.schedule.first_step
        require(
            first_step == 0,
            f"schedule.first_step = {first_step} goes on with another run; set start_from to its folder",
        )
        model = GPT(config.model, seed=config.seed).to(world.device)
        state = TrainState.fresh(dict(model.named_parameters()))
        return Trainer(config, model, state, batches, world)
    if STATE_DOCUMENT not in checkpoint.documents:
        raise CheckpointError(
            f"'{checkpoint.path}' holds no training state ({STATE_DOCUMENT}), so none can go on"
        )
    state = training_state.from_checkpoint(
        checkpoint.tensors,
        checkpoint.documents[STATE_DOCUMENT],
        config.model.parameter_shapes(),
        world.device,
    )
    if starts:
        state.move_to(config.schedule.first_step)
    model = GPT.from_arrays(checkpoint.tensors["model"], config.model)
    return Trainer(config, model, state, batches, world)


def steps(config: TrainConfig, trainer: Trainer | None = None) -> Iterator[StepReport]:
    """Train to `config.schedule.last_step`, yielding a report after every step.

    Without a trainer, `prepare(config)` makes one. Ends early after `trainer.request_stop()`.
    Raises NonFiniteError (`Trainer.step`), and what `prepare` raises.
    """
    trainer = trainer or prepare(config)
    assert trainer.config == config, "the trainer was prepared for another config"
    while trainer.state.step < config.schedule.last_step and not trainer.stopping():
        report = trainer.step()
        if report is None:
            return
        yield report


class RandomBatches:
    """Uniformly random tokens: what a speed measurement needs when there is no corpus yet."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self.vocab_size = vocab_size
        self.seq_len = seq_len

    def batch(self, index0: int, batch_size: int) -> tuple[Ids, Ids]:
        """(inputs [B, T], labels [B, T]), a function of `index0`."""
        random = np.random.default_rng(index0)
        windows = random.integers(0, self.vocab_size, (batch_size, self.seq_len + 1))  # [B, T+1]
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def n_tokens(self, n_samples: int) -> int:
        """Tokens of the first `n_samples` samples."""
        return n_samples * self.seq_len


def measure_precisions(config: TrainConfig, duration_s: float) -> dict[Precision, float]:
    """Tokens/s of `config` in each precision that this hardware multiplies; `duration_s`: for all."""
    candidates = [Precision.FP32]
    candidates += [Precision.BF16] if dispatch.bf16_supported() else []
    candidates += [Precision.INT8] if dispatch.int8_supported() else []
    share_s = duration_s / len(candidates)
    return {p: measure_tokens_per_s(replace(config, precision=p), share_s) for p in candidates}


def measure_tokens_per_s(config: TrainConfig, duration_s: float = 10.0) -> float:
    """Training speed of `config` on this machine: steps for `duration_s` on random tokens.

    The first step (memory, kernels) is left out; at least one is timed. Nothing is read or written.
    """
    require(duration_s > 0, f"duration_s = {duration_s} must be positive")
    keep_freed_memory()  # as `fit` does
    trainer = prepare(config, batches=RandomBatches(config.model.vocab_size, config.data.seq_len))
    trainer.step()
    started = time.perf_counter()
    n_tokens, elapsed_s = 0, 0.0
    while elapsed_s < duration_s:
        report = trainer.step()
        assert report is not None, "nobody asks this trainer to stop"
        n_tokens += report.n_tokens
        elapsed_s = time.perf_counter() - started
    return n_tokens / elapsed_s
