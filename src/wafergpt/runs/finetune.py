"""A base, a task and the shape of its examples make a complete fine-tuning run (no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from wafergpt.config import require, require_finite
from wafergpt.finetuning.config import ClassWeights, ExamplesConfig, FineTuneConfig
from wafergpt.model.config import GPTConfig, LoRAConfig, Parametrization
from wafergpt.runs.pretrain import MICRO_BATCH_TOKENS
from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig

# Peak rates, ours: a tenth of what the small published models were pre-trained with; under muP half of it did
# better in trials (docs/log.md). An adapter, which starts at zero and has few numbers, takes more.
PEAK_LR = {Parametrization.STANDARD: 5e-4, Parametrization.MUP: 3e-3}
LORA_PEAK_LR = {Parametrization.STANDARD: 2e-3, Parametrization.MUP: 6e-3}
ROW_TOKENS = 256  # of a packed row: fewer where a batch has fewer, more where an example is longer
N_EVALUATIONS = 10
N_SAVES = 4  # of what resume needs; the best model is kept at each evaluation


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Examples as the packing sees them."""

    n_examples: int
    n_tokens: int  # positions in all
    longest: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a user decides; the rest follows. None: our choice."""

    base: Path
    data: Path
    examples: ExamplesConfig
    epochs: float = 3.0
    batch_examples: int = 32  # examples of one step, about
    peak_lr: float | None = None
    seq_len: int | None = None  # longest example, in tokens; None: the base's window
    lora: LoRAConfig | None = None
    precision: Precision | None = None  # None: what the machine is quick in
    class_weights: ClassWeights = ClassWeights.EQUAL
    random_weights: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite("epochs", self.epochs, minimum=0.01, maximum=10_000)
        require(self.batch_examples >= 1, f"batch_examples = {self.batch_examples} must be at least 1")


def finetune(
    plan: Plan, model: GPTConfig, shape: DataShape, quick: Precision = Precision.FP32
) -> FineTuneConfig:
    """The run of `plan` on a base of shape `model`; `quick` is what this machine trains fastest in.

    Raises ConfigError.
    """
    batch_tokens = math.ceil(plan.batch_examples * shape.n_tokens / shape.n_examples)
    seq_len = min(model.max_seq_len, max(shape.longest, min(batch_tokens, ROW_TOKENS)))
    n_rows = max(1, math.ceil(shape.n_tokens / seq_len))
    rows = max(1, min(n_rows, round(plan.batch_examples * n_rows / shape.n_examples)))
    micro = min(rows, max(1, MICRO_BATCH_TOKENS // seq_len))
    rows = micro * math.ceil(rows / micro)
    total_steps = max(2, math.ceil(plan.epochs * n_rows / rows))
    every = max(1, total_steps // N_EVALUATIONS)
    peak_lr = plan.peak_lr
    if peak_lr is None:
        peak_lr = (LORA_PEAK_LR if plan.lora else PEAK_LR)[model.parametrization]
    return FineTuneConfig(
        model=model,
        data=DataConfig(path=plan.data, seq_len=seq_len),
        optim=OptimConfig(peak_lr=peak_lr, weight_decay=0.01),
        schedule=ScheduleConfig(
            warmup_steps=min(total_steps - 1, math.ceil(0.06 * total_steps)),
            total_steps=total_steps,
            final_fraction=0.0,
        ),
        batch_size=rows,
        micro_batch_size=micro,
        precision=plan.precision or quick,
        seed=plan.seed,
        eval_every=every,
        eval_tokens=1 << 18,
        save_every=max(1, total_steps // N_SAVES),
        keep=1,
        log_every=every,
        base=plan.base,
        examples=plan.examples,
        lora=plan.lora,
        class_weights=plan.class_weights,
        random_weights=plan.random_weights,
    )
