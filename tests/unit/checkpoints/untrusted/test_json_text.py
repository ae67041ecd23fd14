"""Strict JSON: refused before it is parsed where parsing would cost too much."""

from __future__ import annotations

import contextlib
import json
import tracemalloc

import pytest

from wafergpt.checkpoints.untrusted.json_text import MAX_DEPTH, check_text, parse_json


def test_what_json_reads_is_read() -> None:
    for value in ({"a": [1, -2.5, None, True, 'x"\\\n{[,:']}, [], "", 0, {"": {}}, "é日🎉"):
        for ascii_only in (True, False):
            assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b'{"a":1,"a":2}', "appears twice"),
        (b'{"a":1,"\\u0061":2}', "appears twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "Infinity is not JSON"),
        (b"[1e999]", "too large for a float"),
        (b"[" + b"9" * 5000 + b"]", "limit"),
        (b"\xff", "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b'{"a":1}x', "Extra data"),
        (b'["\x01"]', "control character"),
        (b'"abc', "Unterminated"),
        (b'"abc\\', "Unterminated"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"":' * 65 + b"1" + b"}" * 65, "nested too deeply"),
        (b"[" + b"[]," * 400_000 + b"[]]", "more values than the limit of 400000"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, rule: str) -> None:
    with pytest.raises(ValueError) as failure:
        parse_json(data)
    assert rule in str(failure.value)
    assert "\n" not in str(failure.value)


def test_brackets_in_text_do_not_count() -> None:
    assert parse_json(json.dumps({"a": "[" * 1000, 'b\\"[': '"{'}).encode()) is not None
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(deepest) is not None


def test_half_a_surrogate_pair_is_refused_only_where_asked() -> None:
    half, whole, spelt = b'{"a":["\\ud83c"]}', b'"\\ud83c\\udf89"', b'"\\\\ud83c"'
    for data in (whole, spelt):
        check_text(data, parse_json(data))
    with pytest.raises(ValueError, match="surrogate"):
        check_text(half, parse_json(half))


def test_refusing_costs_little_memory_and_quotes_cost_no_square() -> None:
    """Planted: the standard parser alone needs over 20 times the text's length for this text."""
    hostile = b"[" + b"[]," * 300_000 + b"[]]"
    peaks = []
    for parse in (parse_json, json.loads):
        tracemalloc.start()
        with contextlib.suppress(ValueError):
            parse(hostile)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 3 * len(hostile) < 20 * len(hostile) < peaks[1]
    # Were the scan to start anew at each escaped quote, this would take minutes.
    with pytest.raises(ValueError):
        parse_json(b'"' + b'\\"' * 1_000_000)
