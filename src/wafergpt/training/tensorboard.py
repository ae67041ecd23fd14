"""Scalars for TensorBoard, on request (the `tensorboard` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from wafergpt.errors import MissingDependencyError


def writer_class() -> Any:
    """TensorBoard's writer. Raises MissingDependencyError without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependencyError("TensorBoard is missing: pip install 'wafergpt[tensorboard]'") from None
    return SummaryWriter


class TensorBoard:
    """Writes the numbers of metrics lines as event files; after a resume, later points are replaced."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Raises MissingDependencyError without tensorboard."""
        self._writer = writer_class()(str(folder), purge_step=first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, line: dict[str, Any]) -> None:
        """Add every number of a metrics line under its name."""
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, line["step"])
