"""What a fine-tuned model has beside its weights: the task it was taught, and its head (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.checkpoint import TENSOR_SUFFIX
from wafergpt.checkpoints.native import CheckpointStore, load_checkpoint
from wafergpt.errors import CheckpointError

TASK_DOCUMENT = "task.json"
HEAD_GROUP = "head"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """`document` is task.json: `task`, `settings` and, once it was done, `calibration`."""

    document: Mapping[str, Any]
    head: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def read_task(checkpoint: Path) -> TaskFiles | None:
    """The task of a checkpoint folder; None if it was taught none. Raises CheckpointError, StorageError."""
    if not (checkpoint / TASK_DOCUMENT).is_file():
        return None
    has_head = (checkpoint / f"{HEAD_GROUP}{TENSOR_SUFFIX}").is_file()
    read = load_checkpoint(checkpoint, groups=[HEAD_GROUP] if has_head else [], verify_all=False)
    document = read.documents.get(TASK_DOCUMENT)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"'{checkpoint}': {TASK_DOCUMENT} is not of format {FORMAT}")
    return TaskFiles(document=document, head=read.tensors.get(HEAD_GROUP, {}))


def rewrite_task(checkpoint: Path, document: Mapping[str, Any]) -> Path:
    """The checkpoint again with another task.json; the old one is removed. Returns the new one's folder."""
    read = load_checkpoint(checkpoint)
    documents = {**read.documents, TASK_DOCUMENT: dict(document)}
    store = CheckpointStore(checkpoint.parent, keep=1)
    return store.save(read.step, read.tensors, documents, read.blobs)
