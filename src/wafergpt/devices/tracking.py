"""Which memory is whose while a region runs: parameters, copies of them, results and how long they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from wafergpt.devices.operators import size_of


def storage_of(x: Tensor) -> Any | None:
    """The memory behind a tensor; None for those that have none: sparse, lazy, of torch.func."""
    try:
        return x.untyped_storage()
    except (NotImplementedError, RuntimeError, ValueError):
        return None


@dataclass(frozen=True)
class Weight:
    """A parameter that was used. `reference`: to its memory, which may go while the region runs."""

    name: str
    n_elements: int
    reference: Any = field(repr=False)


@dataclass
class _Alive:
    """A result. `weight`: the parameter it is a copy of. `is_rounded`: in the device's format."""

    n_bytes: float
    phase: str
    weight: Weight | None
    is_rounded: bool
    reference: Any


@dataclass
class Memory:
    """Storages by address; none is kept from being freed. `word_bytes`: of a floating-point number there.

    `n_parameters`: values of the parameters that were used, the most at one time.
    """

    word_bytes: int
    weights: dict[int, Weight] = field(default_factory=dict)
    names: dict[int, tuple[str, Any]] = field(default_factory=dict)
    # data pointer -> parameter, for native kernels
    addresses: weakref.WeakValueDictionary[int, Tensor] = field(default_factory=weakref.WeakValueDictionary)
    alive: dict[int, _Alive] = field(default_factory=dict)
    activation_bytes: float = 0.0
    activation_bytes_peak: float = 0.0
    n_parameters: int = 0
    n_parameters_now: int = 0

    def n_bytes(self, x: Tensor) -> float:
        """Bytes of x on the wafer: its word for a real number, at most four for an integer."""
        n = size_of(x)
        if x.is_floating_point():
            return float(n * self.word_bytes)
        if x.is_complex():
            return float(2 * n * self.word_bytes)
        return float(n * min(x.element_size(), 4))

    def name_parameters(self, module: nn.Module) -> None:
        """Remember the names of a module's parameters; a name given earlier stays."""
        for name, parameter in module.named_parameters():
            storage = storage_of(parameter)
            if storage is not None:
                key = storage._cdata
                if key not in self.names:
                    self.names[key] = (name, weakref.ref(storage, self._forget(key)))
                if parameter.device.type == "cpu" and not isinstance(parameter, FakeTensor):
                    self.addresses[parameter.data_ptr()] = parameter

    def weight(self, x: Tensor) -> Weight | None:
        """The parameter that x is, views, or was copied from; any other leaf that asks for a gradient too."""
        storage = storage_of(x)
        if storage is None:
            return None
        key = storage._cdata
        if key in self.weights:
            return self.weights[key]
        is_named = key in self.names
        if key in self.alive and not (is_named or isinstance(x, nn.Parameter)):
            return self.alive[key].weight
        if is_named or isinstance(x, nn.Parameter) or (x.requires_grad and x.is_leaf):
            self._drop(key)
            name = self.names[key][0] if is_named else f"parameter {len(self.weights)}"
            n_elements = storage.nbytes() // max(x.element_size(), 1)
            self.weights[key] = Weight(name, n_elements, weakref.ref(storage, self._forget(key)))
            self.n_parameters_now += n_elements
            self.n_parameters = max(self.n_parameters, self.n_parameters_now)
            return self.weights[key]
        return None

    def weight_at(self, address: int) -> Weight | None:
        """The named parameter whose data begins at `address`."""
        parameter = self.addresses.get(address)
        return None if parameter is None else self.weight(parameter)

    def phase_of(self, x: Tensor) -> str | None:
        """The phase in which x was made, if in this region."""
        storage = storage_of(x)
        entry = None if storage is None else self.alive.get(storage._cdata)
        return None if entry is None else entry.phase

    def is_rounded(self, x: Tensor) -> bool:
        """Whether x is known to hold numbers of the device's format."""
        storage = storage_of(x)
        entry = None if storage is None else self.alive.get(storage._cdata)
        return entry is not None and entry.is_rounded

    def add(self, made: Iterable[Tensor], phase: str, *, copy_of: Weight | None, is_rounded: bool) -> None:
        """Take note of an operator's results; what is known already (in place, views) is not new."""
        for x in made:
            storage = storage_of(x)
            if storage is None or storage.nbytes() == 0:
                continue
            key = storage._cdata
            if key in self.alive or key in self.weights or key in self.names:
                continue
            is_activation = phase == "forward" and copy_of is None
            n_bytes = self._storage_bytes(x, storage) if is_activation else 0.0
            reference = weakref.ref(storage, self._forget(key))
            self.alive[key] = _Alive(n_bytes, phase, copy_of, is_rounded, reference)
            self.activation_bytes += n_bytes
            self.activation_bytes_peak = max(self.activation_bytes_peak, self.activation_bytes)

    def _storage_bytes(self, x: Tensor, storage: Any) -> float:
        n_elements, n = storage.nbytes() // max(x.element_size(), 1), size_of(x)
        return n_elements * (self.n_bytes(x) / n) if n else 0.0

    def _forget(self, key: int) -> Any:
        """What to do when the storage at `key` is freed: its address may be another's from then on."""

        def freed(_: Any) -> None:
            self._drop(key)
            self.names.pop(key, None)
            weight = self.weights.pop(key, None)
            if weight is not None:
                self.n_parameters_now -= weight.n_elements

        return freed

    def _drop(self, key: int) -> None:
        entry = self.alive.pop(key, None)
        if entry is not None:
            self.activation_bytes -= entry.n_bytes

    def close(self) -> None:
        """Let go of every storage; what is counted stays."""
        self.alive.clear()
        self.weights.clear()
        self.names.clear()
        self.addresses.clear()


def rows_and_tokens(arguments: Iterable[Any]) -> tuple[int, int]:
    """(rows, positions) of a model's arguments: of the first tensor of ids, else of the first of numbers.

    Ids [B, T] are B rows of T positions, ids [T] one row; numbers [B, T, D] count as ids [B, T]; in other
    shapes every row is one position. Nested tensors are rows of their own lengths. (0, 0) without a tensor.
    """
    found = [x for x in arguments if isinstance(x, torch.Tensor) and x.dim() > 0]
    nested = [x for x in found if x.is_nested]
    if nested:
        rows = nested[0]
        return rows.size(0), size_of(rows) // _width(rows)
    ids = [x for x in found if not x.is_floating_point() and x.dtype != torch.bool]
    if ids:
        shape = ids[0].shape
        return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[0] * shape[1])
    if not found:
        return 0, 0
    shape = found[0].shape
    return (shape[0], shape[0] * shape[1]) if len(shape) == 3 else (shape[0], shape[0])


def _width(rows: Tensor) -> int:
    """Numbers of one position of a nested tensor: its last size, where that is the same in all rows."""
    try:
        return max(rows.size(-1), 1) if rows.dim() > 2 else 1
    except RuntimeError:
        return 1
