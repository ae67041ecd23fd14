"""The base model as data: which text, what is withheld from it, which model, how long (no torch).

docs/log.md says how vocabulary and shape were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wafergpt.config import require, require_finite
from wafergpt.model.config import GPTConfig
from wafergpt.recipes import compute_optimal
from wafergpt.runs.quickstart import small_model
from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig, TrainConfig

NAME = "base"

# "bibles" is three versions verse by verse: text that says again, in other words, what stands before it. It
# comes first and has 55 books once the test books are withheld, so holding out every 55th document takes one.
CORPORA = ("bibles", "sotu", "janeausten", "wordnet", "gcide", "chitchat")
HELD_OUT_EVERY = 55
TESTS = (
    "headlines",
    "film-sentences",
    "intents",
    "kjv-bbe",
    "help-en-fr",
    "help-en-zh",
    "squad",
    "help-desk",
    "chitchat",
    "moby-dick",
)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Everything `wafergpt train base` decides before it has seen the machine."""

    corpora: tuple[str, ...]  # assets
    tests: tuple[str, ...]  # data sets whose test and validation parts are withheld
    held_out_every: int  # documents
    vocab_size: int  # of the byte-level BPE trained on the mix
    models: tuple[GPTConfig, ...]  # largest first
    tokens_per_param: float  # taken: the first that reads as many, else the last
    batch_size: int  # sequences
    peak_lr: float  # base rate; muP gives the hidden matrices peak_lr / m
    training_s: float  # what the schedule is planned to take
    rate_s: float  # how long a model's speeds are measured before the schedule is set
    prompts: tuple[str, ...]  # continued in the card
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite("training_s", self.training_s, minimum=1.0, maximum=864_000.0)
        require_finite("rate_s", self.rate_s, minimum=0.1, maximum=600.0)
        require(len(self.models) > 0, "no model to choose from")
        for model in self.models:
            require(model.vocab_size == self.vocab_size, "a model's vocabulary is not the tokenizer's")
            require(model.max_seq_len == self.seq_len, "the models differ in their context windows")

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence: the context window of every model."""
        return self.models[0].max_seq_len


def base() -> BaseConfig:
    """An hour on two cores; two minutes of it are left for evaluations and checkpoints."""
    return BaseConfig(
        corpora=CORPORA,
        tests=TESTS,
        held_out_every=HELD_OUT_EVERY,
        vocab_size=8_192,
        models=(
            small_model(d_model=256, n_layers=6, vocab_size=8_192, max_seq_len=512),
            small_model(d_model=192, n_layers=4, vocab_size=8_192, max_seq_len=512),
        ),
        tokens_per_param=3.0,
        batch_size=8,
        peak_lr=6e-3,
        training_s=58 * 60.0,
        rate_s=30.0,
        prompts=("The President of the United States", "In the beginning", "A: Hi, how are you?\nB:"),
    )


def smoke() -> BaseConfig:
    """A few seconds of the same path on the text inside Python, with nothing to fetch or to withhold."""
    return replace(
        base(),
        corpora=("pydoc",),
        tests=(),
        held_out_every=8,
        vocab_size=512,
        models=(small_model(d_model=64, n_layers=2, vocab_size=512, max_seq_len=64),),
        batch_size=4,
        training_s=2.0,
        rate_s=0.3,
        prompts=("The class",),
    )


def train_config(
    config: BaseConfig, model: GPTConfig, *, data: Path, precision: Precision, total_steps: int
) -> TrainConfig:
    """The run of `total_steps` steps over the folder `data`: AdamW, warm-up, linear decay to 10 %."""
    require(total_steps >= 2, f"{total_steps} step(s) are too few to train on; give it more time")
    batch_tokens = config.batch_size * config.seq_len
    return TrainConfig(
        model=model,
        data=DataConfig(path=data, seq_len=config.seq_len),
        optim=OptimConfig(peak_lr=config.peak_lr),
        schedule=ScheduleConfig(
            warmup_steps=compute_optimal.warmup_steps(total_steps * batch_tokens, batch_tokens),
            total_steps=total_steps,
        ),
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        precision=precision,
        seed=config.seed,
        eval_every=max(1, total_steps // 10),
        save_every=max(1, total_steps // 20),
    )
