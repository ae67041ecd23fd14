"""Strict JSON from a file nobody vouches for: judged by its brackets and commas before it is parsed.

A JSON text can ask for far more memory than its length (millions of empty lists, `[[[[...`), so depth and
number of values are counted on the bytes first, at the price of one pass.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

MAX_DEPTH = 64
# A value costs up to about 70 bytes of Python objects: 400,000 of them stay below 30 MiB. The header of
# 30,000 tensors has about as many; a GPT-2 model has 150 to 500 tensors.
MAX_VALUES = 400_000

# One whole string, or one that never ends: consuming that too keeps the scan linear.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_WHOLE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)  # up to a string that does not end
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"{}[],:"))
_STEP = bytes.maketrans(b"{}[],:", bytes([1, 255, 1, 255, 0, 0]))  # +1, -1 and 0 as int8
_WINDOW_BYTES = 1 << 16
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# One character beyond the basic plane (UTF-8 from 0xF0 on) makes Python hold all of a text with four bytes a
# character, and its one long string again.
_WIDE_BYTE = 0xF0
_MAX_WIDE_BYTES = 4 << 20


def parse_json(data: bytes, *, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> Any:
    """The value of a UTF-8 JSON text without duplicate keys, NaN or infinities.

    `max_depth` bounds how deep lists and objects nest, `max_values` how many values (keys count too) there
    are. Raises ValueError with one line, whatever the input.
    """
    if len(data) > _MAX_WIDE_BYTES and np.frombuffer(data, np.uint8).max() >= _WIDE_BYTE:
        raise ValueError(f"over {_MAX_WIDE_BYTES} bytes with characters that take four in memory")
    n_names = _check_structure(data, max_depth, max_values)
    try:
        value: Any = json.loads(data.decode("utf-8"), parse_constant=_constant, parse_float=_finite_float)
    except RecursionError:
        raise ValueError(f"nested too deeply (the limit is {max_depth})") from None
    if _count_names(value) != n_names:
        raise ValueError("a name appears twice")
    return value


def _check_structure(data: bytes, max_depth: int, max_values: int) -> int:
    """The number of names (colons), after the limits are checked on brackets and commas outside strings."""
    depth = n_values = n_names = 0
    for structure in _structure(data):
        n_values += len(structure) - structure.count(b"]") - structure.count(b"}")
        n_names += structure.count(b":")
        depths = depth + np.cumsum(np.frombuffer(structure.translate(_STEP), np.int8), dtype=np.int64)
        if depths.size and depths.max() > max_depth:
            raise ValueError(f"nested too deeply (the limit is {max_depth})")
        depth = int(depths[-1]) if depths.size else depth
        if n_values > max_values:
            raise ValueError(f"it has more values than the limit of {max_values}")
    return n_names


def _structure(data: bytes) -> Iterator[bytes]:
    """The brackets, commas and colons outside strings, window by window."""
    position = 0
    while position < len(data):
        whole = _WHOLE.match(data, position, position + _WINDOW_BYTES)
        end = whole.end() if whole else position
        if end == position:  # a string longer than the window
            string = _STRING.match(data, position)
            assert string is not None
            position = string.end()
            continue
        yield _STRING.sub(b"", data[position:end]).translate(None, _NOT_STRUCTURE)
        position = end


def _count_names(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(
            _count_names(item) for item in value.values() if isinstance(item, dict | list)
        )
    if isinstance(value, list):
        return sum(_count_names(item) for item in value if isinstance(item, dict | list))
    return 0


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
