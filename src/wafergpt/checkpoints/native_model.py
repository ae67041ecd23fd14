"""A run or checkpoint folder of ours as a `StoredModel`, and a `StoredModel` as a folder for every verb.

A converted model has one checkpoint, of step 0, with weights, config and tokenizer but no optimiser state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wafergpt.checkpoints.native import CHECKPOINTS_NAME, Checkpoint, CheckpointStore, load_checkpoint
from wafergpt.checkpoints.stored_model import StoredModel, check_arrays
from wafergpt.checkpoints.task_files import TASK_DOCUMENT
from wafergpt.config import from_dict, to_dict
from wafergpt.errors import CheckpointError, ConfigError, DataError
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import FILE_NAME as TOKENIZER_NAME
from wafergpt.tokenizer.bpe import Tokenizer

MODEL_GROUP = "model"
CONFIG_DOCUMENT = "config.json"
ORIGIN_DOCUMENT = "origin.json"
DATA_DOCUMENT = "data.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"


def read_run(directory: Path) -> StoredModel:
    """The newest checkpoint that verifies of a run folder, or one checkpoint folder.

    Raises CheckpointError, StorageError. Every byte is hashed; the arrays are in memory.
    """
    return from_checkpoint(load_checkpoint(directory, groups=[MODEL_GROUP]))


def from_checkpoint(checkpoint: Checkpoint) -> StoredModel:
    """The model of a checkpoint whose `model` tensors are loaded. Raises CheckpointError."""
    where = f"checkpoint '{checkpoint.path}'"
    run = checkpoint.documents.get(CONFIG_DOCUMENT)
    if not isinstance(run, dict) or MODEL_GROUP not in run:
        raise CheckpointError(f"{where} does not say what model it holds ({CONFIG_DOCUMENT})")
    tokenizer = checkpoint.blobs.get(TOKENIZER_NAME)
    try:
        config = from_dict(GPTConfig, run["model"], "model")
        arrays = checkpoint.tensors[MODEL_GROUP]
        check_arrays(config, arrays)
        return StoredModel(
            config=config,
            arrays=arrays,
            tokenizer=None if tokenizer is None else Tokenizer.from_bytes(tokenizer),
            chat_template=_chat_template(checkpoint),
            provenance=_provenance(checkpoint, run),
            notes=_notes(checkpoint),
        )
    except (CheckpointError, ConfigError, DataError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    notes = [f"passed over checkpoint {s.path.name}: {s.reason}" for s in checkpoint.skipped]
    task = checkpoint.documents.get(TASK_DOCUMENT)
    if isinstance(task, dict):
        notes.append(
            f"it was taught {task.get('task')}; other formats and a new task leave that and its head behind"
        )
    return tuple(notes)


def _chat_template(checkpoint: Checkpoint) -> str | None:
    data = checkpoint.blobs.get(CHAT_TEMPLATE_NAME)
    return None if data is None else data.decode("utf-8")


# What of a run's config says how its weights came about; where files lay and how often it logged does not.
_FACTS = ("batch_size", "precision", "seed", "optim", "schedule")


def _provenance(checkpoint: Checkpoint, run: Mapping[str, Any]) -> dict[str, Any]:
    origin = checkpoint.documents.get(ORIGIN_DOCUMENT)
    if isinstance(origin, dict):  # a converted model: what its source said of itself
        return origin
    facts: dict[str, Any] = {"step": checkpoint.step}
    facts["training"] = {name: run[name] for name in _FACTS if name in run}
    data, model = run.get("data"), run[MODEL_GROUP]
    if isinstance(data, dict) and "seq_len" in data:
        facts["training"]["seq_len"] = data["seq_len"]
    facts["training"] |= {name: model[name] for name in ("parametrization", "init_std") if name in model}
    fingerprint = checkpoint.documents.get(DATA_DOCUMENT)
    if isinstance(fingerprint, dict):
        facts["training_data"] = fingerprint
    return facts


def write_run(model: StoredModel, directory: Path) -> Path:
    """Write `model` as a run folder with one checkpoint; returns the checkpoint's folder.

    Raises StorageError, NonFiniteError.
    """
    blobs = {} if model.tokenizer is None else {TOKENIZER_NAME: model.tokenizer.to_bytes()}
    if model.chat_template is not None:
        blobs[CHAT_TEMPLATE_NAME] = model.chat_template.encode()
    documents = {
        CONFIG_DOCUMENT: {"model": to_dict(model.config)},
        ORIGIN_DOCUMENT: to_dict(dict(model.provenance)),
    }
    return CheckpointStore(directory / CHECKPOINTS_NAME).save(
        0, {MODEL_GROUP: model.arrays}, documents, blobs
    )
