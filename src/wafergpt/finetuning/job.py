"""A fine-tuning run for `training.fit.run`: the same loop, resume, display and checkpoints as pre-training.

RUN/checkpoints holds one checkpoint, the best model so far, ready to use; RUN/training what resume needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wafergpt.checkpoints.native import CHECKPOINTS_NAME, Checkpoint, CheckpointStore
from wafergpt.checkpoints.stored_model import check_arrays
from wafergpt.config import require
from wafergpt.errors import CheckpointError
from wafergpt.finetuning import publish
from wafergpt.finetuning.classifier import LabelObjective, SpanObjective
from wafergpt.finetuning.config import FineTuneConfig
from wafergpt.finetuning.held_out import TaskHeldOut, TaskLoss, TaskObjective
from wafergpt.finetuning.material import Material, weights_sha256
from wafergpt.finetuning.packing import PackedExamples
from wafergpt.finetuning.supervised import TokenObjective
from wafergpt.model import heads, lora, mup
from wafergpt.model.gpt import GPT
from wafergpt.tasks.task import Objective
from wafergpt.training import state as training_state
from wafergpt.training.distributed import World
from wafergpt.training.held_out import Evaluation, Loss
from wafergpt.training.loop import STATE_DOCUMENT
from wafergpt.training.optim import UpdateRule
from wafergpt.training.run_folder import RunFolder
from wafergpt.training.state import TrainState
from wafergpt.training.step import Trainer
from wafergpt.units import format_count

TRAINING_NAME = "training"


class FineTuneFolder(RunFolder):
    """A run folder whose resumable checkpoints lie apart from the model it is making."""

    def __init__(self, path: Path, config: FineTuneConfig, tokenizer: bytes) -> None:
        super().__init__(path, config)
        self.store = CheckpointStore(self.path / TRAINING_NAME / CHECKPOINTS_NAME, keep=config.keep)
        self._tokenizer = tokenizer

    def tokenizer(self) -> bytes:
        """The base's."""
        return self._tokenizer


class FineTuning:
    """Teaches a base one task."""

    def __init__(self, config: FineTuneConfig, path: Path, material: Material) -> None:
        """Raises ConfigError, DataError for what does not fit together."""
        require(config.model == material.base.config, "model is not the base's; leave it to the base")
        self.config = config
        self.material = material
        self.folder: RunFolder = FineTuneFolder(path, config, material.tokenizer.to_bytes())
        self._weights = material.label_weights(config.class_weights)
        self._batches = PackedExamples(
            material.train.rows,
            material.task.objective,
            seq_len=config.data.seq_len,
            seed=config.seed,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            weights=self._weights,
        )
        self._judge: PackedExamples | None = None
        if material.validation is not None:
            self._judge = PackedExamples(
                material.validation.rows, material.task.objective, seq_len=config.data.seq_len
            )
        self.held_out: Evaluation | None = None  # once there is a model
        judged = self._judge.fingerprint if self._judge else ""
        self.data_fingerprint = f"{self._batches.fingerprint}/{judged}/{weights_sha256(material.base)}"
        self.loss_unit = "nats/token" if material.n_outputs == 0 else "nats/example"
        self._history: list[tuple[int, float]] = []  # (step, nats) of each evaluation
        self._n_trained = 0  # parameters

    def prepare(
        self, checkpoint: Checkpoint | None, world: World, lines: Sequence[Mapping[str, Any]]
    ) -> Trainer:
        """The base with its head and adapters, at the first step or at `checkpoint`'s."""
        model = self._model()
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._n_trained = sum(p.numel() for p in learning.values())
        if checkpoint is None:
            state = TrainState.fresh(learning)
        elif STATE_DOCUMENT not in checkpoint.documents:
            raise CheckpointError(f"'{checkpoint.path}' holds no training state, so it cannot go on")
        else:
            state = training_state.from_checkpoint(
                checkpoint.tensors,
                checkpoint.documents[STATE_DOCUMENT],
                {name: tuple(p.shape) for name, p in learning.items()},
                world.device,
            )
        self._history = [
            (int(line["step"]), float(line["held_out_nats"])) for line in lines if "held_out_nats" in line
        ]
        objective = self._objective(model)
        if self._judge is not None:
            self.held_out = TaskHeldOut(self._judge, objective)
        rules = update_rules(self.config, learning)
        return Trainer(
            self.config, model.to(world.device), state, self._batches, world, objective=objective, rules=rules
        )

    def _model(self) -> GPT:
        config, base = self.config, self.material.base
        if config.random_weights:
            model = GPT(config.model, seed=config.seed)
        else:
            check_arrays(config.model, base.arrays)
            model = GPT.from_stored(base, copy=True)
        if config.lora is not None:
            lora.add_adapters(model, config.lora, config.seed)
        if self.material.n_outputs:
            heads.attach_head(model, self.material.n_outputs)
        return model

    def _objective(self, model: GPT) -> TaskObjective:
        kind = self.material.task.objective
        if kind is Objective.TOKENS:
            return TokenObjective(model)
        head = model.get_submodule(heads.NAME)
        assert isinstance(head, heads.Head)
        return (
            LabelObjective(model, head, self._weights)
            if kind is Objective.LABEL
            else SpanObjective(model, head)
        )

    def describe(self) -> str:
        """Task, examples, what is trained."""
        shape = f"{format_count(self._n_trained)} of {format_count(self.config.model.n_params)} parameters"
        examples = f"{len(self.material.train.rows):,} examples in {self._batches.n_samples:,} rows"
        return f"{self.material.task.name} on {examples}, {shape},"

    def notices(self) -> list[str]:
        """What was left out of the data, leaks, how full the rows are."""
        fill = self._batches.n_tokens(self._batches.n_samples) / (
            self._batches.n_samples * self.config.data.seq_len
        )
        found = [*self.material.base.notes, *self.material.notices, f"packed rows are {fill:.0%} full"]
        if self._judge is None:
            found.append("there are no validation examples, so the last weights are kept, not the best")
        return found

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, nats) of the best evaluation, the first among equals; None before any."""
        return min(self._history, key=lambda entry: entry[1], default=None)

    def judged(self, trainer: Trainer, loss: Loss) -> None:
        """Publish the model when it is the best so far."""
        assert isinstance(loss, TaskLoss)
        self._history.append((trainer.state.step, loss.nats))
        if self.best == self._history[-1] and trainer.world.is_first:
            publish.publish(self.folder.path, trainer.state, self.material, self.config)

    def stop_reason(self) -> str | None:
        """Early stopping: `patience` evaluations in a row were no better than the best before them."""
        patience, best = self.config.patience, self.best
        if patience == 0 or best is None:
            return None
        n_since = len(self._history) - 1 - self._history.index(best)
        if n_since < patience:
            return None
        return f"no better than at step {best[0]} in {n_since} evaluations; its weights are kept"

    def finish(self, trainer: Trainer) -> list[str]:
        """Without validation the last weights are the model; else the best are there."""
        if not trainer.world.is_first:
            return []
        store = CheckpointStore(self.folder.path / CHECKPOINTS_NAME, keep=1)
        best = self.best
        if best is None:
            if not store.paths():
                publish.publish(self.folder.path, trainer.state, self.material, self.config)
            return []
        kept = store.load_newest(groups=(), verify_all=False).step
        note = f"the model in {self.folder.path} is that of step {kept}"
        if kept != best[0]:
            return [f"{note}, not of the best evaluation (step {best[0]}): the run went on elsewhere"]
        return [f"{note}, the best of {len(self._history)} evaluations: {best[1]:.4f} {self.loss_unit}"]


def update_rules(config: FineTuneConfig, names: Mapping[str, object]) -> dict[str, UpdateRule]:
    """How each trained weight is updated.

    A head reads the residual stream, so its rate scales as a hidden matrix's. An adapter's A reads what
    its layer reads and has that layer's rate; B reads `rank` numbers, whatever the width: the base rate.
    """
    table, decay = mup.rules(config.model), config.optim.weight_decay
    rules = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if kind == lora.B:
            rules[name] = UpdateRule(lr_scale=1.0, weight_decay=decay)
            continue
        if layer == heads.NAME:
            role = mup.Role.HIDDEN_IN if kind == "weight" else mup.Role.BIAS
        else:
            role = mup.role_of(f"{layer}.weight" if kind == lora.A else name)
        rule = table[role]
        rules[name] = UpdateRule(lr_scale=rule.lr_scale, weight_decay=decay * rule.weight_decay)
    return rules
