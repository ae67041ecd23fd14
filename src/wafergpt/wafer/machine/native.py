"""The native engine: the C++ core of `kernels/cpu/wafer`, on the same arrays as the NumPy reference."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.kernels import wafer_build
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Stop
from wafergpt.wafer.machine.state import State, native_struct

Order = NDArray[np.int32]


def available() -> str:
    """Why the native engine cannot be had here; '' if it can. Builds it on the first call."""
    return wafer_build.status().reason


class NativeEngine:
    """Advances a `State` in place, in `threads` host threads."""

    name = "native"

    def __init__(
        self, image: Image, state: State, *, order: Order, threads: int = 1, check: bool = False
    ) -> None:
        library = wafer_build.library()
        assert library is not None
        self._run: Any = library.wm_run
        self._threads = threads
        self._machine, self._arrays = native_struct(image, state, order, check=check)
        if library.wm_machine_bytes() != ctypes.sizeof(self._machine):
            raise AssertionError("machine.h and state.py disagree")

    def run(self, limit: int) -> Stop:
        """Go on until nothing moves, a fault, or absolute cycle `limit`."""
        return Stop(
            self._run(ctypes.byref(self._machine), ctypes.c_int64(limit), ctypes.c_int64(self._threads))
        )
