"""Which compiled kernels the operations of this process use: part of a run's environment."""

from __future__ import annotations

from wafergpt.kernels import build


def kernels_in_use() -> str:
    """The kernel library's file name (it holds a hash of sources, flags, compiler and CPU), or `none`."""
    path = build.status().path
    return "none" if path is None else path.name
