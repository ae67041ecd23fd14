"""Everything that decides a training run, as one frozen tree (no torch).

The tree is printed when a run starts, stored with every checkpoint, and compared on resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wafergpt.config import require, require_finite
from wafergpt.model.config import GPTConfig


class Precision(StrEnum):
    """What the forward and backward passes compute in; weights are always updated in float32."""

    FP32 = "fp32"
    BF16 = "bf16"  # weights of two or more dimensions as bfloat16 copies of float32 masters
    INT8 = (
        "int8"  # as bf16, and the products in int8, gradients rounded stochastically (ops.cpu); AVX-512 VNNI
    )


class Decay(StrEnum):
    """Shape of the learning rate's way down; Cerebras-GPT used both (111M linear, 1.3B cosine)."""

    LINEAR = "linear"
    COSINE = "cosine"


class Device(StrEnum):
    """Where to train: `auto` takes a CUDA device when there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Parallel(StrEnum):
    """How several processes share one model. FSDP2 has its name and no implementation yet."""

    DDP = "ddp"
    FSDP2 = "fsdp2"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which prepared folder (`wafergpt prepare`) to read, and the window length T in tokens."""

    path: Path
    seq_len: int

    def __post_init__(self) -> None:
        require(self.seq_len >= 1, f"data.seq_len = {self.seq_len} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (torch's form: decay is LR x weight_decay, eps outside the bias-corrected root) and clipping.

    Defaults are Cerebras-GPT's (Dey et al. 2023, arXiv 2304.03208, section 2 and Model Zoo configs).
    """

    peak_lr: float  # base learning rate; muP multiplies it per role (model.mup.rules)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8  # 1e-9 for 6.7B and 13B; the rule is eps <= sqrt(mean of v) / 1000
    weight_decay: float = 0.1  # not on biases and LayerNorm (model.mup.rules)
    clip_norm: float | None = 1.0  # largest global L2 norm of the gradient; null: no clipping

    def __post_init__(self) -> None:
        require_finite("optim.peak_lr", self.peak_lr, minimum=0.0, maximum=10.0)
        require(len(self.betas) == 2, f"optim.betas = {list(self.betas)} must be two numbers")
        for i, beta in enumerate(self.betas):
            require(0 <= beta < 1, f"optim.betas[{i}] = {beta!r} is out of range; allowed: 0 to below 1")
        require_finite("optim.eps", self.eps, minimum=1e-20, maximum=1.0)
        require_finite("optim.weight_decay", self.weight_decay, minimum=0.0, maximum=10.0)
        if self.clip_norm is not None:
            require_finite("optim.clip_norm", self.clip_norm, minimum=1e-9)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up from 0 to the peak, then decay to `final_fraction` of it, in optimiser steps.

    A run may take only a part of this curve: from `first_step`, with another run's state
    (`TrainConfig.start_from`), or up to `stop_step`. Cerebras-GPT 13B was trained so, in two phases.
    """

    warmup_steps: int
    total_steps: int
    decay: Decay = Decay.LINEAR
    final_fraction: float = 0.1  # Cerebras-GPT decays to 10 % of the peak
    first_step: int = 0  # the step counter when this run starts
    stop_step: int | None = None  # the step counter when this run ends; null: total_steps

    def __post_init__(self) -> None:
        require(self.total_steps >= 1, f"schedule.total_steps = {self.total_steps} must be at least 1")
        require(
            0 <= self.warmup_steps < self.total_steps,
            f"schedule.warmup_steps = {self.warmup_steps} must lie in 0 to {self.total_steps - 1}"
            f" (below schedule.total_steps = {self.total_steps})",
        )
        require_finite("schedule.final_fraction", self.final_fraction, minimum=0.0, maximum=1.0)
        require(
            0 <= self.first_step < self.last_step <= self.total_steps,
            f"schedule.first_step = {self.first_step} and schedule.stop_step = {self.stop_step} must satisfy"
            f" 0 <= first_step < stop_step <= schedule.total_steps = {self.total_steps}",
        )

    @property
    def last_step(self) -> int:
        """The step counter when the run ends: `stop_step`, or `total_steps`."""
        return self.total_steps if self.stop_step is None else self.stop_step

    @property
    def n_steps(self) -> int:
        """Optimiser steps this run takes."""
        return self.last_step - self.first_step


_MINIMUMS = {
    "batch_size": 1,
    "micro_batch_size": 1,
    "eval_every": 0,
    "eval_tokens": 1,
    "sample_every": 0,
    "save_every": 1,
    "keep": 1,
    "log_every": 1,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One complete run. `batch_size` and `micro_batch_size` count sequences of `data.seq_len` tokens."""

    model: GPTConfig
    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    batch_size: int  # sequences per optimiser step, over all processes
    micro_batch_size: int  # sequences per forward pass of one process; divides batch_size
    precision: Precision = Precision.BF16
    seed: int = 0  # initial weights and data order
    device: Device = Device.AUTO
    parallel: Parallel = Parallel.DDP
    start_from: Path | None = None  # a run or checkpoint whose weights, moments and place in the data go on

    # What the standard caller (`training.fit`) does between steps; none of it changes a weight.
    eval_every: int = 100  # steps between held-out evaluations; 0: only at the end
    eval_tokens: int = 65_536  # held-out tokens per evaluation while training (the last one reads them all)
    sample_every: int = 0  # steps between samples of text; 0: none
    save_every: int = 100  # steps between checkpoints; the last step is always saved
    keep: int = 3  # newest checkpoints kept
    log_every: int = 10  # steps between lines where there is no terminal to draw on

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUMS.items():
            value = getattr(self, name)
            require(value >= minimum, f"{name} = {value} must be at least {minimum}")
        require(
            self.batch_size % self.micro_batch_size == 0,
            f"batch_size = {self.batch_size} is not a multiple of micro_batch_size = {self.micro_batch_size}",
        )
        require(
            self.data.seq_len <= self.model.max_seq_len,
            f"data.seq_len = {self.data.seq_len} is longer than model.max_seq_len = {self.model.max_seq_len}",
        )
        require(0 <= self.seed < 2**63, f"seed = {self.seed} is out of range; allowed: 0 to 2^63 - 1")
        require(self.parallel is Parallel.DDP, "parallel = fsdp2 is not implemented yet; use parallel = ddp")

    @property
    def tokens_per_step(self) -> int:
        """Tokens the loss is taken over in one optimiser step."""
        return self.batch_size * self.data.seq_len

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run (epochs counted again)."""
        return self.tokens_per_step * self.schedule.n_steps
