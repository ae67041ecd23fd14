"""Strict JSON from a file nobody vouches for: judged by its brackets and commas before it is parsed.

A JSON text can ask for far more memory than its length (millions of empty lists, `[[[[...`), so depth and
number of values are counted on the bytes first, at the price of one pass.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

MAX_DEPTH = 64
# A value costs up to about 70 bytes of Python objects: 400,000 of them stay below 30 MiB. The header of
# 30,000 tensors has about as many; a GPT-2 model has 150 to 500 tensors.
MAX_VALUES = 400_000

# One whole string, or one that never ends: consuming that too keeps the scan linear.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"{}[],:"))
_STEP = bytes.maketrans(b"{}[],:", bytes([1, 255, 1, 255, 0, 0]))  # +1, -1 and 0 as int8
_PIECE_BYTES = 1 << 16
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, *, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> Any:
    """The value of a UTF-8 JSON text without duplicate keys, NaN or infinities.

    `max_depth` bounds how deep lists and objects nest, `max_values` how many values (keys count too) there
    are. Raises ValueError with one line, whatever the input.
    """
    _check_structure(data, max_depth, max_values)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError(f"nested too deeply (the limit is {max_depth})") from None


def _check_structure(data: bytes, max_depth: int, max_values: int) -> None:
    structure = _STRING.sub(b"", data).translate(None, _NOT_STRUCTURE)
    n_values = len(structure) - structure.count(b"]") - structure.count(b"}")
    if n_values > max_values:
        raise ValueError(f"{n_values} values are over the limit of {max_values}")
    steps = np.frombuffer(structure.translate(_STEP), np.int8)
    depth = 0
    for start in range(0, len(steps), _PIECE_BYTES):
        depths = depth + np.cumsum(steps[start : start + _PIECE_BYTES], dtype=np.int64)
        if depths.max() > max_depth:
            raise ValueError(f"nested too deeply (the limit is {max_depth})")
        depth = int(depths[-1])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large for a float")
    return value


def check_text(data: bytes, value: Any) -> None:
    """Refuse half of a surrogate pair in `value`, parsed from `data`: printing it would fail.

    Raises ValueError. (JSON can say it, UTF-8 cannot; a checkpoint of ours may hold one in a path.)
    """
    if not _SURROGATE.search(data):
        return
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                raise ValueError("a text holds half of a surrogate pair") from None
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
