"""A training run in miniature: NumPy only, deterministic, every kind of state a real one has.

`python -m checkpoint_lab.trainer ROOT N_STEPS` resumes from the newest checkpoint in ROOT and saves after
every step, printing the step once it is safe.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.checkpoints.files import FileLayer
from wafergpt.checkpoints.native import Checkpoint, CheckpointStore
from wafergpt.errors import CheckpointError

N_WEIGHTS = 700  # 2800 bytes: several 512-byte sectors, so that a torn write is a torn tensor


def _generator(state: dict[str, Any] | None = None) -> np.random.Generator:
    generator = np.random.Generator(np.random.PCG64(20230406))
    if state is not None:
        generator.bit_generator.state = state
    return generator


@dataclass
class State:
    """Everything that decides the next step."""

    step: int = 0
    weight: np.ndarray = field(default_factory=lambda: np.zeros(N_WEIGHTS, np.float32))
    moment: np.ndarray = field(default_factory=lambda: np.zeros(N_WEIGHTS, np.float32))
    rng: np.random.Generator = field(default_factory=_generator)
    losses: list[float] = field(default_factory=list)

    def advance(self) -> None:
        gradient = self.rng.standard_normal(N_WEIGHTS, np.float32) + self.weight
        self.moment = np.float32(0.9) * self.moment + np.float32(0.1) * gradient
        self.weight = self.weight - np.float32(0.01) * self.moment
        self.losses = [*self.losses[-4:], float(np.square(self.weight).sum())]
        self.step += 1

    def save(self, store: CheckpointStore) -> Path:
        return store.save(
            self.step,
            {"model": {"w": self.weight}, "optimizer": {"exp_avg.w": self.moment}},
            {"state.json": {"rng": self.rng.bit_generator.state, "losses": self.losses}},
            {"tokenizer.bin": self.fingerprint_blob()},
        )

    def fingerprint_blob(self) -> bytes:
        return f"step {self.step} ".encode() * 60

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> State:
        document = checkpoint.documents["state.json"]
        return cls(
            step=checkpoint.step,
            weight=checkpoint.tensors["model"]["w"],
            moment=checkpoint.tensors["optimizer"]["exp_avg.w"],
            rng=_generator(document["rng"]),
            losses=document["losses"],
        )


Fingerprint = tuple[Any, ...]


def fingerprint(checkpoint: Checkpoint) -> Fingerprint:
    """All of a checkpoint's content, for bit-exact comparison."""
    tensors = tuple(
        (group, name, str(array.dtype), array.shape, array.tobytes())
        for group, arrays in sorted(checkpoint.tensors.items())
        for name, array in sorted(arrays.items())
    )
    return checkpoint.step, tensors, repr(checkpoint.documents), tuple(sorted(checkpoint.blobs.items()))


def expected_fingerprints(n_steps: int) -> list[Fingerprint]:
    """What a checkpoint of each step 0..n_steps must hold, computed without any file."""
    state, prints = State(), []
    for step in range(n_steps + 1):
        prints.append(
            fingerprint(
                Checkpoint(
                    step=step,
                    path=Path(),
                    tensors={"model": {"w": state.weight}, "optimizer": {"exp_avg.w": state.moment}},
                    documents={
                        "state.json": {"rng": state.rng.bit_generator.state, "losses": list(state.losses)}
                    },
                    blobs={"tokenizer.bin": state.fingerprint_blob()},
                )
            )
        )
        state.advance()
    return prints


def run(
    root: Path,
    n_steps: int,
    acknowledge: Callable[[int], object],
    files: FileLayer | None = None,
    make_store: type[CheckpointStore] = CheckpointStore,
) -> None:
    """Resume or start, then train to `n_steps`, saving after each step."""
    store = make_store(root, keep=2, files=files)
    try:
        state = State.of(store.load_newest())
    except CheckpointError:
        state = State()
    while state.step < n_steps:
        state.advance()
        state.save(store)
        acknowledge(state.step)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), lambda step: print(step, flush=True))
