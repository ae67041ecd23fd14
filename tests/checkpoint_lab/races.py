"""Several live processes on one folder of checkpoints.

`python -m checkpoint_lab.races readers FOLDER N_STEPS` or `... writers FOLDER N_STEPS` prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from checkpoint_lab.trainer import State, expected_fingerprints, fingerprint, run
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.errors import CheckpointError, RunLockedError


def readers(folder: Path, n_steps: int) -> dict[str, object]:
    """One process trains and removes old checkpoints, this one reads meanwhile: old or new, never mixed."""
    expected, violations, n_loads, seen = expected_fingerprints(n_steps), [], 0, 0
    root = folder / "checkpoints"
    run(root, 1, lambda step: None)
    loads, begun = os.pipe()  # the writer waits for a load before each step: no machine is too slow for it
    child = os.fork()
    if child == 0:
        os.close(begun)
        try:
            run(root, n_steps, lambda step: os.read(loads, 1))
        finally:
            os._exit(0)
    store = CheckpointStore(root)
    done = 0
    while not done:
        done, _ = os.waitpid(child, os.WNOHANG)
        os.write(begun, b".")
        try:
            checkpoint = store.load_newest()
        except CheckpointError as error:
            violations.append(f"load {n_loads}: {error}")
            continue
        n_loads += 1
        if (
            checkpoint.skipped
            or fingerprint(checkpoint) != expected[checkpoint.step]
            or checkpoint.step < seen
        ):
            violations.append(f"load {n_loads}: step {checkpoint.step} after {seen}, {checkpoint.skipped}")
        seen = checkpoint.step
    return {"n_loads": n_loads, "last": seen, "violations": violations}


def writers(folder: Path, n_steps: int) -> dict[str, object]:
    """Three processes save the same run without knowing of each other: refusals by name, never a mixture."""
    root = folder / "checkpoints"
    root.mkdir(parents=True)
    reader, writer = os.pipe()
    for _ in range(3):
        if os.fork() == 0:
            os._exit(_write_blindly(root, n_steps, writer))
    os.close(writer)
    counts = b""
    while data := os.read(reader, 4096):
        counts += data
    statuses = [os.WEXITSTATUS(os.wait()[1]) for _ in range(3)]
    expected, store = expected_fingerprints(n_steps), CheckpointStore(root)
    newest = store.load_newest()
    violations = [f"a writer ended with status {status}" for status in statuses if status]
    if newest.step != n_steps or fingerprint(newest) != expected[n_steps] or newest.skipped:
        violations.append(f"step {newest.step} is the newest, skipped {newest.skipped}")
    for path in store.paths():
        store.verify(path)
    return {"n_saved": counts.count(b"s"), "n_refused": counts.count(b"r"), "violations": violations}


def _write_blindly(root: Path, n_steps: int, writer: int) -> int:
    try:
        store, state = CheckpointStore(root), State()
        for _ in range(n_steps):
            state.advance()
            saved = False
            while not saved:
                try:
                    state.save(store)
                    saved = True
                except RunLockedError:
                    os.write(writer, b"r")
            os.write(writer, b"s")
    except BaseException:
        return 1
    return 0


if __name__ == "__main__":
    print(
        json.dumps({"readers": readers, "writers": writers}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])))
    )
