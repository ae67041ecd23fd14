"""What every format is read into and written from: a config, named arrays and a tokenizer (no torch).

Arrays have our names and our layout (matrices [out, in]). A reader gives them lazily, one at a time, as
float32 views of the mapped file where the format allows, so that a conversion never holds a second copy of
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import CheckpointError, did_you_mean
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer

Array = NDArray[Any]


class LazyArrays(Mapping[str, Array]):
    """Named arrays made when they are asked for. Nothing is kept: ask once per array, or keep it yourself."""

    def __init__(self, makers: Mapping[str, Callable[[], Array]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Array:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would make the array


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """One model as files hold it; `arrays` has exactly `config.parameter_shapes()` (the head is tied)."""

    config: GPTConfig
    arrays: Mapping[str, NDArray[np.float32]]
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None  # carried as text, never rendered
    provenance: Mapping[str, Any] = field(default_factory=dict)  # facts of the run, for the model card
    notes: tuple[str, ...] = ()  # what the reader dropped, assumed or chose; one line each, for the user


def check_arrays(config: GPTConfig, arrays: Mapping[str, Array]) -> None:
    """Raise CheckpointError naming the first array that is missing, unknown or of another shape."""
    expected = config.parameter_shapes()
    for name in arrays:
        if name not in expected:
            raise CheckpointError(f"unknown weight '{name}'{did_you_mean(name, list(expected))}")
    for name, shape in expected.items():
        if name not in arrays:
            raise CheckpointError(f"weight '{name}' is missing")
        if arrays[name].shape != shape:
            raise CheckpointError(f"weight '{name}' has shape {arrays[name].shape}, the config says {shape}")
