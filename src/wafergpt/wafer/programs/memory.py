"""What the PEs' memory holds, PE by PE: code, weights, cache, buffers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.image import Image

PARTS = ("code", "weights", "cache", "buffers")
_WEIGHTS, _CACHES = ("wte", "wpe", "w", "a", "b"), ("kv",)  # beside `*.weight` and `*.bias`


def memory_parts(image: Image) -> dict[str, NDArray[np.int64]]:
    """Part -> its bytes in each PE [height, width]; what an array is, its name says.

    Code counts the descriptors too, buffers all other arrays and what alignment leaves free.
    """
    per_role = []
    for arrays, sram_bytes in zip(image.arrays, image.sram_bytes, strict=True):
        data = max((array.address + array.n_bytes for array in arrays.values()), default=0)
        weights = sum(a.n_bytes for name, a in arrays.items() if _is_weight(name))
        cache = sum(a.n_bytes for name, a in arrays.items() if name in _CACHES)
        per_role.append((sram_bytes - data, weights, cache, data - weights - cache))
    by_pe = np.array(per_role, np.int64)[image.role].reshape(image.height, image.width, len(PARTS))
    return {part: by_pe[..., place] for place, part in enumerate(PARTS)}


def _is_weight(name: str) -> bool:
    return name in _WEIGHTS or name.endswith((".weight", ".bias"))
