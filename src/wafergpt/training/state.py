"""All that changes while training, in one dataclass that save, load and compare cover field by field.

Everything else is a function of the configuration and of these fields: the learning rate of `step`, the
batch of `sample_index`, the bfloat16 weights of `master`. No random-number state exists: the family
has no dropout, and initial weights and sample order are functions of the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from wafergpt.errors import CheckpointError

FORMAT = 1  # of the state document; raised when a field changes its meaning

Arrays = dict[str, dict[str, np.ndarray]]


@dataclass(kw_only=True)
class TrainState:
    """Weights, moments and counters. Tensors are float32, keyed by the model's parameter names."""

    master: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int = 0  # steps done, skipped ones included; decides the learning rate
    sample_index: int = 0  # samples consumed by all processes; decides the next batch
    n_skipped: int = 0  # steps whose loss or gradient was not finite
    n_skipped_in_a_row: int = 0
    # False once the run went on in another environment, where the same steps may round differently.
    bit_exact: bool = True
    # Updates that `step` does not count: not 0 in a run that started with another's state, at another step.
    update_offset: int = 0

    @classmethod
    def fresh(cls, parameters: Mapping[str, Tensor]) -> Self:
        """The state before the first step: float32 copies of `parameters`, zero moments."""
        master = {
            name: p.detach().float().clone(memory_format=torch.contiguous_format)
            for name, p in parameters.items()
        }
        return cls(
            master=master,
            exp_avg={name: torch.zeros_like(p) for name, p in master.items()},
            exp_avg_sq={name: torch.zeros_like(p) for name, p in master.items()},
        )

    @property
    def n_updates(self) -> int:
        """Updates applied; Adam's bias correction counts these."""
        return self.step - self.n_skipped + self.update_offset

    def move_to(self, step: int) -> None:
        """Set the step counter, as a new run that goes on with this state does; Adam's own count stays."""
        self.update_offset = self.n_updates - step
        self.step, self.n_skipped, self.n_skipped_in_a_row = step, 0, 0

    def count_step(self, n_samples: int, skipped: bool) -> None:
        """Advance the counters past one step."""
        self.step += 1
        self.sample_index += n_samples
        self.n_skipped += skipped
        self.n_skipped_in_a_row = self.n_skipped_in_a_row + 1 if skipped else 0


# Where each field of TrainState lives in a checkpoint: tensor fields as (group, prefix), counters by type.
TENSOR_FIELDS = {
    "master": ("model", ""),
    "exp_avg": ("optimizer", "exp_avg."),
    "exp_avg_sq": ("optimizer", "exp_avg_sq."),
}
COUNTER_FIELDS: dict[str, type] = {
    "step": int,
    "sample_index": int,
    "n_skipped": int,
    "n_skipped_in_a_row": int,
    "bit_exact": bool,
    "update_offset": int,
}
_ADDED_COUNTERS = {"update_offset": 0}  # missing in a document of an earlier version: this value


def to_arrays(state: TrainState) -> Arrays:
    """`{"model": {name: ...}, "optimizer": {"exp_avg." + name: ...}}`, float32, not copied on a CPU."""
    groups: Arrays = {}
    for name, (group, prefix) in TENSOR_FIELDS.items():
        tensors: dict[str, Tensor] = getattr(state, name)
        arrays = {prefix + key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}
        groups.setdefault(group, {}).update(arrays)
    return groups


def to_document(state: TrainState) -> dict[str, Any]:
    """The counters as a JSON object."""
    return {"format": FORMAT, **{name: getattr(state, name) for name in COUNTER_FIELDS}}


def from_checkpoint(
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    document: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
) -> TrainState:
    """The state that `to_arrays` and `to_document` wrote; `shapes` are the model's parameter shapes.

    Raises CheckpointError when a tensor or counter is missing, left over, or of another shape or type.
    """
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"training state has format {document.get('format')!r}; this version reads {FORMAT}"
        )
    counters = _ADDED_COUNTERS | {key: value for key, value in document.items() if key != "format"}
    if set(counters) != set(COUNTER_FIELDS):
        odd = ", ".join(sorted(set(counters) ^ set(COUNTER_FIELDS)))
        raise CheckpointError(f"training state: missing or unknown counters: {odd}")
    for name, kind in COUNTER_FIELDS.items():
        if type(counters[name]) is not kind:
            raise CheckpointError(
                f"training state: {name} = {counters[name]!r} is not of type {kind.__name__}"
            )
    expected: dict[str, set[str]] = {}
    for group, prefix in TENSOR_FIELDS.values():
        expected.setdefault(group, set()).update(prefix + key for key in shapes)
    for group, names in expected.items():
        odd_names = sorted(set(tensors.get(group, {})) ^ names)
        if odd_names:
            raise CheckpointError(f"checkpoint group '{group}': missing or unknown tensor '{odd_names[0]}'")
    loaded: dict[str, Any] = {
        name: {key: _tensor(tensors[group], prefix + key, shapes[key], device) for key in shapes}
        for name, (group, prefix) in TENSOR_FIELDS.items()
    }
    return TrainState(**loaded, **counters)


def _tensor(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    array = arrays[name]
    if array.dtype != np.float32 or array.shape != shape:
        found = f"is {array.dtype} {list(array.shape)}"
        raise CheckpointError(f"checkpoint tensor '{name}' {found}; the model needs float32 {list(shape)}")
    # A copy in torch's own memory: it is aligned as in the run that saved, so GEMMs take the same path.
    return torch.from_numpy(array).clone().to(device)


def differences(a: TrainState, b: TrainState) -> list[str]:
    """Names of everything that is not bit-equal between two states, e.g. `exp_avg.wte.weight` or `step`."""
    found = []
    for name in (f.name for f in fields(a)):
        if name in COUNTER_FIELDS:
            if getattr(a, name) != getattr(b, name):
                found.append(name)
            continue
        assert name in TENSOR_FIELDS, f"TrainState.{name} has no place in a checkpoint"
        left: dict[str, Tensor] = getattr(a, name)
        right: dict[str, Tensor] = getattr(b, name)
        for key in sorted(set(left) | set(right)):
            if key not in left or key not in right or not _same_bits(left[key], right[key]):
                found.append(f"{name}.{key}")
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)))
