"""What a fine-tuning run is made of: a base with its tokenizer, a task, examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import require
from wafergpt.data import records as files
from wafergpt.errors import CheckpointError, shown
from wafergpt.finetuning import vocabulary
from wafergpt.finetuning.config import ClassWeights, ExamplesConfig
from wafergpt.tasks import columns, registry
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.examples import Examples, collect, leaks, split_off
from wafergpt.tasks.task import Objective, Record, Task
from wafergpt.tasks.translation import Translation
from wafergpt.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Material:
    """See the module."""

    base: StoredModel  # with rows for the new entries, if there are any
    tokenizer: Tokenizer
    task: Task
    train: Examples
    validation: Examples | None
    notices: tuple[str, ...] = ()  # what was left out, and leaks

    @property
    def n_outputs(self) -> int:
        """Of the head; 0: there is none."""
        if self.task.objective is Objective.LABEL:
            assert isinstance(self.task, Classification)
            return len(self.task.labels)
        return 2 if self.task.objective is Objective.SPAN else 0

    def label_weights(self, kind: ClassWeights) -> list[float]:
        """What each label counts for; empty: all alike. Raises ConfigError where there are no labels."""
        if kind is ClassWeights.EQUAL:
            return []
        require(
            self.task.objective is Objective.LABEL,
            "class_weights = balanced needs a classification head; this task learns tokens",
        )
        counts = Counter(row.label for row in self.train.rows)
        total = sum(counts.values())
        return [total / (self.n_outputs * counts[i]) if counts[i] else 0.0 for i in range(self.n_outputs)]


def tokenizer_of(base: StoredModel) -> Tokenizer:
    """The base's tokenizer. Raises CheckpointError when it has none, or one of another vocabulary."""
    if base.tokenizer is None:
        raise CheckpointError("the base holds no tokenizer; `wafergpt convert --tokenizer FILE` adds one")
    if base.tokenizer.vocab_size > base.config.vocab_size:
        raise CheckpointError(
            f"the base's tokenizer has {base.tokenizer.vocab_size} entries, the base only"
            f" {base.config.vocab_size}: they do not belong together"
        )
    return base.tokenizer


def gather(base: StoredModel, path: Path, examples: ExamplesConfig, window: int, seed: int = 0) -> Material:
    """Read the examples at `path` and encode them for `base`, at most `window` tokens each.

    Raises DataError, ConfigError, CheckpointError.
    """
    tokenizer = tokenizer_of(base)
    task = registry.make(examples.task, examples.settings)
    train, validation, origin = _read_splits(task, path, examples, seed)
    task = task.learn_from(train)
    if examples.new_tokens:
        base = vocabulary.widened(base, tokenizer, task, train, examples.new_tokens)
        tokenizer = tokenizer_of(base)
    window = min(window, base.config.max_seq_len)
    learned = collect(task, train, tokenizer, window, what=str(path))
    notices = [learned.report(str(path))]
    if examples.new_tokens:
        notices.append(f"vocabulary: {examples.new_tokens:,} new entries, {tokenizer.vocab_size:,} in all")
    judged = None
    if isinstance(task, Translation) and task.sources:
        notices.append(f"kept with the model, as its memory: {len(task.sources):,} training pairs")
    if validation:
        judged = collect(task, validation, tokenizer, window, what=origin)
        notices.append(judged.report(origin))
        notices += leak_notice(task, learned.records, judged.records, "validation")
    return Material(
        base=base,
        tokenizer=tokenizer,
        task=task,
        train=learned,
        validation=judged,
        notices=tuple(notices),
    )


def _read_splits(
    task: Task, path: Path, examples: ExamplesConfig, seed: int
) -> tuple[list[Record], list[Record], str]:
    """(to learn from, to judge by, where the latter come from: a file, a split, or a part of the data)."""
    told = examples.columns
    train = columns.records_of(task, files.read_records(path), str(path), told=told)
    apart, origin = examples.validation, str(examples.validation)
    if apart is None and files.VALIDATION in files.splits_of(path):
        apart, origin = path, f"the validation split of {path}"
    if apart is not None:
        split = files.VALIDATION if files.VALIDATION in files.splits_of(apart) else files.TRAIN
        return train, columns.records_of(task, files.read_records(apart, split), origin, told=told), origin
    kept, off = split_off(task, train, examples.validation_fraction, seed)
    return kept, off, f"the part split off {path} for validation"


def leak_notice(task: Task, train: tuple[Record, ...], test: tuple[Record, ...], what: str) -> list[str]:
    """One line when something is asked in both, else none."""
    found = leaks(task, train, test)
    if not found:
        return []
    return [
        f"leak: {len(found):,} questions of {what} are in the training examples too, e.g. {shown(found[0])};"
        f" scores on them say little"
    ]


def weights_sha256(base: StoredModel) -> str:
    """SHA-256 of every weight, by name."""
    digest = hashlib.sha256()
    for name in sorted(base.arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(base.arrays[name], np.float32).data)
    return digest.hexdigest()
