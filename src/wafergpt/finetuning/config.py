"""Everything that decides a fine-tuning run: a training run with a base, a task, examples (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from wafergpt.config import require, require_finite
from wafergpt.model.config import LoRAConfig
from wafergpt.training.config import TrainConfig


class ClassWeights(StrEnum):
    """What an example of a label counts for in the loss of a classification head."""

    EQUAL = "equal"
    BALANCED = "balanced"  # labels count alike: n examples / (n labels x n of this label)


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig:
    """Which task the examples teach, and how they are read."""

    task: str
    settings: dict[str, Any] = field(default_factory=dict)  # of the task, see `tasks`
    columns: dict[str, str] = field(default_factory=dict)  # field of the task -> column of the data
    validation: Path | None = None  # null: the data's own validation split, or a part split off
    validation_fraction: float = 0.1  # split off where the data have no validation split; 0: none
    new_tokens: int = 0  # entries that the base's vocabulary gets, learned from what is to be written

    def __post_init__(self) -> None:
        require_finite("validation_fraction", self.validation_fraction, minimum=0.0, maximum=0.9)
        require(self.new_tokens >= 0, f"new_tokens = {self.new_tokens} must not be negative")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(TrainConfig):
    """One complete run. `data.path` holds labelled examples; a sequence is a row of whole examples.

    They are packed up to `data.seq_len` tokens and never see each other.
    """

    base: Path  # any model that `wafergpt.load` takes
    examples: ExamplesConfig
    lora: LoRAConfig | None = None  # null: every weight is trained
    class_weights: ClassWeights = ClassWeights.EQUAL
    patience: int = 3  # evaluations without a better one before the run ends; 0: it never ends early
    random_weights: bool = (
        False  # start from fresh weights of the base's shape: what pre-training is compared to
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patience >= 0, f"patience = {self.patience} must not be negative")
        require(self.start_from is None, "start_from belongs to pre-training; a fine-tuning run has a base")
        require(self.schedule.first_step == 0, "schedule.first_step belongs to pre-training")
        require(
            not (self.random_weights and self.lora),
            "random_weights with lora would train next to nothing; leave one of them out",
        )
        require(
            self.examples.new_tokens == 0 or self.lora is None or "wte" in self.lora.targets,
            "new_tokens with lora need the embedding to be learned, too: add wte to lora.targets"
            " (--lora-target, once for each target)",
        )
