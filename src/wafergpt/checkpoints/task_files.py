"""What a fine-tuned model has beside its weights: the task it was taught, and its head (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.checkpoint import TENSOR_SUFFIX
from wafergpt.checkpoints.files import write_atomic
from wafergpt.checkpoints.manifest import MANIFEST_NAME
from wafergpt.checkpoints.native import CheckpointStore, load_checkpoint
from wafergpt.checkpoints.tensor_file import parse
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.errors import CheckpointError, StorageError

TASK_DOCUMENT = "task.json"
HEAD_GROUP = "head"
HEAD_NAME = f"{HEAD_GROUP}{TENSOR_SUFFIX}"
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
    has_head = (checkpoint / HEAD_NAME).is_file()
    if not (checkpoint / MANIFEST_NAME).is_file():
        return _read_copies(checkpoint, has_head)
    read = load_checkpoint(checkpoint, groups=[HEAD_GROUP] if has_head else [], verify_all=False)
    return _checked(checkpoint, read.documents.get(TASK_DOCUMENT), read.tensors.get(HEAD_GROUP, {}))


def _checked(folder: Path, document: object, head: Mapping[str, NDArray[np.float32]]) -> TaskFiles:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"'{folder}': {TASK_DOCUMENT} is not of format {FORMAT}")
    return TaskFiles(document=document, head=head)


def _read_copies(folder: Path, has_head: bool) -> TaskFiles:
    """Of a quantized folder, where no manifest vouches for them: bounded readers do."""
    try:
        data = (folder / TASK_DOCUMENT).read_bytes()
        head = np.fromfile(folder / HEAD_NAME, np.uint8) if has_head else None
        document = parse_json(data)
    except OSError as error:
        raise StorageError(f"cannot read the task of '{folder}': {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"'{folder}': {TASK_DOCUMENT} is not valid JSON: {error}") from None
    return _checked(folder, document, {} if head is None else parse(head, HEAD_NAME))


def copy_task(checkpoint: Path, folder: Path) -> tuple[Path, ...]:
    """The task's files of a checkpoint, copied into `folder`; none for a model that was taught none."""
    found = [name for name in (TASK_DOCUMENT, HEAD_NAME) if (checkpoint / name).is_file()]
    for name in found:
        write_atomic(folder / name, (checkpoint / name).read_bytes())
    return tuple(folder / name for name in found)


def rewrite_task(checkpoint: Path, document: Mapping[str, Any]) -> Path:
    """The checkpoint again with another task.json; the old one is removed. Returns the new one's folder."""
    read = load_checkpoint(checkpoint)
    documents = {**read.documents, TASK_DOCUMENT: dict(document)}
    store = CheckpointStore(checkpoint.parent, keep=1)
    return store.save(read.step, read.tensors, documents, read.blobs)
