"""The quickstart as data: which text, which model, which recipe, how long (no torch).

The model follows the published recipe (muP, base values of the 40M proxy). What a few minutes on a CPU
cannot keep of it, `departures` says, with the figures of the run that was made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wafergpt.config import require, require_finite
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.recipes import compute_optimal
from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Everything `wafergpt quickstart` decides before it has seen the machine."""

    corpus: str  # name of an asset
    vocab_size: int  # of the byte-level BPE trained on the corpus
    held_out_block_chars: int  # the text is cut into blocks of this many characters ...
    held_out_every: int  # ... and every N-th of them is kept out of training
    model: GPTConfig
    batch_size: int  # sequences
    peak_lr: float  # base rate; muP gives the hidden matrices peak_lr / m
    training_s: float  # what the schedule is planned to take
    rate_s: float  # how long speeds are measured before the schedule is set
    prompts: tuple[str, ...]
    sample_tokens: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite("training_s", self.training_s, minimum=1.0, maximum=86_400.0)
        require_finite("rate_s", self.rate_s, minimum=0.1, maximum=60.0)
        require(self.model.vocab_size == self.vocab_size, "the model's vocabulary is not the tokenizer's")


def small_model(*, d_model: int, n_layers: int, vocab_size: int, max_seq_len: int) -> GPTConfig:
    """A muP Cerebras-GPT with heads of 64, the proxy's width."""
    return GPTConfig(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=max(1, d_model // 64),
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        parametrization=Parametrization.MUP,
    )


def quickstart(*, minutes: float = 5.0, offline: bool = False) -> QuickstartConfig:
    """Some minutes on the Bible in Basic English; `offline` takes the text that comes with Python."""
    config = QuickstartConfig(
        corpus="bible-bbe",
        vocab_size=4096,
        held_out_block_chars=4000,
        held_out_every=20,
        model=small_model(d_model=192, n_layers=4, vocab_size=4096, max_seq_len=256),
        batch_size=8,
        peak_lr=6e-3,
        training_s=60 * minutes,
        rate_s=10.0,
        prompts=("In the beginning", "And Jesus said to them,", "The king of Egypt"),
    )
    if not offline:
        return config
    return replace(config, corpus="pydoc", prompts=("The class", "A function", "Returns"))


def smoke() -> QuickstartConfig:
    """A few seconds of the same path, for tests and for the commands in the documentation."""
    return replace(
        quickstart(offline=True),
        vocab_size=512,
        model=small_model(d_model=64, n_layers=2, vocab_size=512, max_seq_len=64),
        training_s=2.0,
        rate_s=0.5,
        sample_tokens=20,
    )


def train_config(
    config: QuickstartConfig, *, data: Path, precision: Precision, total_steps: int
) -> TrainConfig:
    """The run of `total_steps` steps: warm-up 10 %, linear decay to 10 %, AdamW as published."""
    require(total_steps >= 2, f"{total_steps} step(s) are too few to train on; give it more time")
    seq_len = config.model.max_seq_len
    return TrainConfig(
        model=config.model,
        data=DataConfig(path=data, seq_len=seq_len),
        optim=OptimConfig(peak_lr=config.peak_lr),
        schedule=ScheduleConfig(
            warmup_steps=compute_optimal.warmup_steps(
                total_steps * config.batch_size * seq_len, config.batch_size * seq_len
            ),
            total_steps=total_steps,
        ),
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        precision=precision,
        seed=config.seed,
        eval_every=max(1, total_steps // 8),
        eval_tokens=16_384,
        sample_every=max(1, total_steps // 4),
        save_every=max(1, total_steps // 4),
    )


def departures(run: TrainConfig, n_train_tokens: int) -> tuple[str, ...]:
    """What of the published recipe this run does not keep, one sentence each."""
    recipe = compute_optimal.for_config(run.model)
    found = []
    tokens_per_param = run.total_tokens / run.model.n_params
    if tokens_per_param < 0.9 * compute_optimal.TOKENS_PER_PARAM:
        found.append(
            f"tokens per parameter: {tokens_per_param:.2f} in the time there was, the recipe asks for"
            f" {compute_optimal.TOKENS_PER_PARAM}"
        )
    if run.total_tokens > n_train_tokens:
        found.append(
            f"repeated text: {run.total_tokens / n_train_tokens:.1f} passes over the corpus,"
            " the recipe makes one"
        )
    if run.tokens_per_step != recipe.batch_tokens:
        found.append(
            f"batch: {run.tokens_per_step:,} tokens a step, so that there are enough steps; the rule derived"
            f" from the published table gives {recipe.batch_tokens:,} at {compute_optimal.TOKENS_PER_PARAM}"
            " tokens per parameter"
        )
    return tuple(found)
