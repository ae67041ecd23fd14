"""How a device sees what `ops` does outside of PyTorch's operators: the calls of our native kernels.

Both settings hold in the thread that made them, and only inside the `with`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from typing import Any

_watcher: ContextVar[Callable[[ctypes.CDLL], Any] | None] = ContextVar("watcher", default=None)
_torch_only: ContextVar[bool] = ContextVar("torch_only", default=False)


def _restore(setting: ContextVar[Any], token: Token[Any], default: Any) -> None:
    """Also where the `with` is left in another context: another asyncio task, or a thread that has ended."""
    try:
        setting.reset(token)
    except ValueError:
        setting.set(default)


@contextlib.contextmanager
def watched(wrap: Callable[[ctypes.CDLL], Any]) -> Iterator[None]:
    """Native kernels are called through what `wrap` makes of their library."""
    token = _watcher.set(wrap)
    try:
        yield
    finally:
        _restore(_watcher, token, None)


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Forward and backward passes use PyTorch's operators alone. The optimiser keeps its kernel."""
    token = _torch_only.set(True)
    try:
        yield
    finally:
        _restore(_torch_only, token, False)


def through_watcher(library: ctypes.CDLL) -> Any:
    """The library itself, or what watches it."""
    wrap = _watcher.get()
    return library if wrap is None else wrap(library)


def is_torch_only() -> bool:
    """Whether `torch_only` holds."""
    return _torch_only.get()
