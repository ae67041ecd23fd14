"""Real storage that refuses: a file-size limit, and a file system that is full.

`python -m checkpoint_lab.limits file-size FOLDER`, or `full FOLDER` where FOLDER is a small file system,
prints one JSON line. It runs in its own process because the limit holds for a whole process.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.errors import StorageError

WEIGHT = np.arange(10_000, dtype=np.float32)  # 40 KB
STEP_BYTES = 4096


def _save(store: CheckpointStore, step: int) -> None:
    store.save(step, {"model": {"w": WEIGHT + np.float32(step)}}, {"state.json": {"step": step}})


def _intact(store: CheckpointStore, step: int) -> bool:
    checkpoint = store.load_newest()
    hidden = [path for path in store.root.iterdir() if path.name.startswith((".tmp-", ".trash-"))]
    same = np.array_equal(checkpoint.tensors["model"]["w"], WEIGHT + np.float32(step))
    return checkpoint.step == step and same and not checkpoint.skipped and not hidden


def limit_file_size(folder: Path) -> dict[str, object]:
    """A limit at every 4 KiB up to the largest file: refused; limit lifted, the same store saves."""
    refused, messages, violations = 0, set(), []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, WEIGHT.nbytes + 2 * STEP_BYTES, STEP_BYTES):
        store = CheckpointStore(folder / str(limit))
        _save(store, 1)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit, hard)
        )  # Python ignores SIGXFSZ: write fails with EFBIG
        try:
            _save(store, 2)
        except StorageError as error:
            refused += 1
            messages.add(str(error).split(": ", 1)[1])
            if not _intact(store, 1):
                violations.append(f"limit {limit}: the earlier checkpoint is not as it was")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        _save(store, 3)
        if not _intact(store, 3):
            violations.append(f"limit {limit}: the next save is not whole")
    return {"n_refused": refused, "messages": sorted(messages), "violations": violations}


def fill(folder: Path) -> dict[str, object]:
    """Save until the file system is full, free some space, save on with the same store."""
    refused, messages, violations, step = 0, set(), [], 1
    store = CheckpointStore(folder / "checkpoints", keep=2)
    _save(store, step)
    for filler in range(200):
        try:
            with open(folder / f"filler-{filler}", "wb") as file:
                file.write(bytes(3 * STEP_BYTES))
        except OSError:
            pass  # full to the last page
        try:
            _save(store, step + 1)
            step += 1
        except StorageError as error:
            refused += 1
            messages.add(str(error).split(": ", 1)[1])
            if not _intact(store, step):
                violations.append(f"after {filler} fillers: the earlier checkpoint is not as it was")
            for old in sorted(folder.glob("filler-*"))[: 40 if refused % 3 == 0 else 0]:
                old.unlink()
    for old in folder.glob("filler-*"):
        old.unlink()
    _save(store, step + 1)
    if not _intact(store, step + 1):
        violations.append("the save after freeing space is not whole")
    return {"n_refused": refused, "n_saved": step + 1, "messages": sorted(messages), "violations": violations}


if __name__ == "__main__":
    print(json.dumps({"file-size": limit_file_size, "full": fill}[sys.argv[1]](Path(sys.argv[2]))))
