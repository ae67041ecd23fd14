"""The native library's functions for Python: instruction sets, packing, one forward step (no torch)."""

from __future__ import annotations

import ctypes
import os
import warnings
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import ConfigError, MissingDependencyError, did_you_mean
from wafergpt.kernels import native_build

# From the slowest to the fastest; isa.cpp knows what each needs of the CPU. `avx512` is with BF16.
ISAS = ("scalar", "avx2", "avx512_vnni", "avx512", "amx")
PANEL = 64  # columns packed together (kernel.h: kPanel)
GROUP = 32  # values of int4 that share a scale (kernel.h: kGroup)
PAGE_TOKENS = 32  # positions in a page of keys and values (kernel.h: kPageTokens)


class Format(IntEnum):
    """How a matrix is packed; the numbers are kernel.h's."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3


_I64 = ctypes.c_int64


class MatrixStruct(ctypes.Structure):
    """abi.cpp's wn_matrix: offsets from the packed file's base, -1 for none."""

    _fields_ = [("format", _I64), ("panels", _I64), ("scales", _I64), ("bias", _I64)]


_NORMS = ("ln_1_weight", "ln_1_bias", "ln_2_weight", "ln_2_bias")
_MATRICES = ("qkv", "attention_out", "fc", "ffn_out")


class LayerStruct(ctypes.Structure):
    """abi.cpp's wn_layer."""

    _fields_ = [*((name, _I64) for name in _NORMS), *((name, MatrixStruct) for name in _MATRICES)]


_SHAPE = ("d_model", "n_layers", "n_heads", "d_ffn", "vocab_size", "max_seq_len")
_COUNTS = ("tanh_activation", "kv_format", "n_pages", "n_threads", "n_cpus")
_FACTORS = ("eps", "embedding_multiplier", "attention_scale", "logit_multiplier")


class ModelStruct(ctypes.Structure):
    """abi.cpp's wn_model."""

    _fields_ = [
        *((name, _I64) for name in (*_SHAPE, *_COUNTS)),
        *((name, ctypes.c_float) for name in _FACTORS),
        ("base", ctypes.c_void_p),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("wte", MatrixStruct),
        *((name, _I64) for name in ("wpe", "ln_f_weight", "ln_f_bias")),
        ("pages", ctypes.c_void_p),
        ("cpus", ctypes.POINTER(ctypes.c_int32)),
        ("isa", ctypes.c_char_p),
    ]


_CHUNK_NUMBERS = 6  # of forward.h's Chunk, 8 bytes each
_ERROR_BYTES = 256
_BROKEN = -2  # wn_isa's word for it


def load() -> ctypes.CDLL:
    """The library with its argument types. Raises MissingDependencyError with the reason and the fix."""
    library = native_build.library()
    if library is None:
        raise MissingDependencyError(f"the native CPU backend is not there: {native_build.status().reason}")
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "wn_isa": (ctypes.c_int, [text, text, _I64]),
        "wn_page_tokens": (_I64, []),
        "wn_page_bytes": (_I64, [_I64] * 4),
        "wn_panels_bytes": (_I64, [_I64] * 3),
        "wn_pack": (None, [_I64, pointer, pointer, _I64, _I64, _I64, _I64, pointer, pointer]),
        "wn_unpack": (None, [_I64, pointer, pointer, _I64, _I64, pointer]),
        "wn_open": (pointer, [ctypes.POINTER(ModelStruct), text, _I64]),
        "wn_close": (None, [pointer]),
        "wn_run": (ctypes.c_int, [pointer, pointer, _I64, pointer, pointer, text, _I64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _isa(name: str) -> tuple[int, str]:
    """abi.cpp's wn_isa: what it returns, and why not."""
    why = ctypes.create_string_buffer(_ERROR_BYTES)
    return load().wn_isa(name.encode(), why, _ERROR_BYTES), why.value.decode()


def supported_isas() -> list[str]:
    """The instruction sets that can be used here, the fastest last. Raises MissingDependencyError."""
    return [name for name in ISAS if _isa(name)[0] == 1]


def broken_isas() -> dict[str, str]:
    """Those that the CPU has and that cannot be used all the same, with the reason.

    Before AMX is used, a few small products are compared with AVX-512's (self_check.cpp). Raises
    MissingDependencyError.
    """
    found = {name: _isa(name) for name in ISAS}
    return {name: why for name, (use, why) in found.items() if use == _BROKEN}


def choose_isa(name: str | None = None) -> str:
    """`name`, else `$WAFERGPT_ISA`, else the fastest; warns if a faster one is there and cannot be used.

    Raises ConfigError for one not known or not here.
    """
    wanted = name or os.environ.get("WAFERGPT_ISA")
    supported = supported_isas()
    if not wanted:
        for broken, why in broken_isas().items():
            warnings.warn(f"'{supported[-1]}' kernels instead of '{broken}': {why}", stacklevel=2)
        return supported[-1]
    if wanted not in ISAS:
        known = ", ".join(ISAS)
        raise ConfigError(f"WAFERGPT_ISA = '{wanted}' is not one of {known}{did_you_mean(wanted, ISAS)}")
    if wanted not in supported:
        broken_why = broken_isas().get(wanted)
        here = f"this CPU has {', '.join(supported)}"
        raise ConfigError(
            f"WAFERGPT_ISA = '{wanted}': {here}" + (f"; of '{wanted}', {broken_why}" if broken_why else "")
        )
    return wanted


def panels_bytes(format: Format, n: int, k: int) -> int:
    """Bytes of an [n, k] matrix packed in panels; kernel.h says what they hold."""
    unit = {Format.F32: 1, Format.BF16: 2, Format.INT8: 4, Format.INT4: GROUP}[format]
    unit_bytes = PANEL * 2 + PANEL * GROUP // 2 if format is Format.INT4 else PANEL * 4
    return -(-n // PANEL) * -(-k // unit) * unit_bytes


def pack(
    format: Format,
    weight: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    n_threads: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """weight [n, k] -> (panels, scales [n padded to 64] of int8 or None).

    `importance` [k] >= 0 weighs int4's errors: the mean square of what the column is multiplied with.
    Raises MissingDependencyError.
    """
    library = load()
    weight = np.ascontiguousarray(weight, np.float32)
    n, k = weight.shape
    n_panels = -(-n // PANEL)
    panels = np.empty(panels_bytes(format, n, k), np.uint8)
    scales = np.empty(n_panels * PANEL, np.float32) if format is Format.INT8 else None
    weights_of_errors = None if importance is None else np.ascontiguousarray(importance, np.float32)

    def some(part: int) -> None:
        first, last = n_panels * part // n_threads, n_panels * (part + 1) // n_threads
        library.wn_pack(
            format, weight.ctypes.data, address(weights_of_errors), n, k, first, last,
            panels.ctypes.data, address(scales),
        )  # fmt: skip

    if n_threads == 1:
        some(0)
    else:
        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(some, range(n_threads)))
    return panels, scales


def unpack(
    format: Format, panels: NDArray[np.uint8], scales: NDArray[np.float32] | None, n: int, k: int
) -> NDArray[np.float32]:
    """What packed weights stand for, float32 [n, k]. Raises MissingDependencyError."""
    out = np.empty((n, k), np.float32)
    load().wn_unpack(format, panels.ctypes.data, address(scales), n, k, out.ctypes.data)
    return out


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array's data is; None for none."""
    return None if array is None else array.ctypes.data


class Step:
    """An opened model in the library: runs mixed steps on its own threads until closed."""

    def __init__(self, model: ModelStruct) -> None:
        """Raises ConfigError with the system's words when the threads or buffers cannot be had."""
        self._library = load()
        self._error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._handle = self._library.wn_open(ctypes.byref(model), self._error, _ERROR_BYTES)
        if not self._handle:
            raise ConfigError(f"cannot open the native backend: {self._error.value.decode()}")

    def run(
        self, chunks: Sequence[int], logits: NDArray[np.float32] | None, hidden: NDArray[np.float32] | None
    ) -> str:
        """One step over chunks of six numbers each; fills logits and hidden; an error text or ''.

        The numbers are forward.h's Chunk: addresses of token ids and of page numbers (int32), n_tokens,
        start, n_logits, want_hidden.
        """
        table = array("q", chunks)
        done = self._library.wn_run(
            self._handle,
            table.buffer_info()[0],
            len(table) // _CHUNK_NUMBERS,
            address(logits),
            address(hidden),
            self._error,
            _ERROR_BYTES,
        )
        return "" if done == 0 else self._error.value.decode()

    def close(self) -> None:
        """End the threads and free the buffers; the object is of no use afterwards."""
        if self._handle:
            self._library.wn_close(self._handle)
            self._handle = None
