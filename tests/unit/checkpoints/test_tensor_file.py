"""The strict safetensors reader and the streaming writer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from wafergpt.checkpoints.tensor_file import MAX_HEADER_BYTES, check_savable, parse, serialized
from wafergpt.errors import CheckpointError


def to_bytes(tensors: dict[str, Any]) -> bytes:
    return b"".join(serialized(tensors))


def read(data: bytes) -> dict[str, Any]:
    return parse(np.frombuffer(bytearray(data), np.uint8), "model.safetensors")


def crafted(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"a": entry([2], [0, 8]), "b": entry([1], [8, 12])}


def test_the_crafted_file_is_good() -> None:
    data = crafted(GOOD, bytes(12))
    assert {name: array.shape for name, array in read(data).items()} == {"a": (2,), "b": (1,)}
    assert read(data).keys() == safetensors.numpy.load(data).keys()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"\x01" * 7, "too few"),
        (crafted(GOOD, bytes(12), length=2**63), "over the limit"),
        (crafted(b"{}", length=MAX_HEADER_BYTES + 1), "over the limit"),
        (crafted(GOOD, length=500), "does not fit"),
        (crafted(b"{"), "not valid JSON"),
        (crafted(b"\xff\xfe"), "not valid JSON"),
        (crafted(b"[" * 100_000), "nested too deeply"),
        (crafted(b'{"a": NaN}'), "NaN is not JSON"),
        (crafted(b'{"a": %d}' % (10**4299)), "exactly dtype"),
        (crafted(b'{"a": 1' + b"0" * 5000 + b"}"), "not valid JSON"),
        (crafted([1]), "not a JSON object"),
        (crafted(b"null"), "not a JSON object"),
        (crafted(b'{"a":' + json.dumps(entry([0], [0, 0])).encode() + b',"a":1}'), "appears twice"),
        (crafted({"__metadata__": {"n": 1}}), "table of strings"),
        (crafted({"__metadata__": []}), "table of strings"),
        (crafted({"a": []}), "exactly dtype"),
        (crafted({"a": {**entry([1], [0, 4]), "x": 1}}, bytes(4)), "exactly dtype"),
        (crafted({"a": {"dtype": "F32"}}), "exactly dtype"),
        (crafted({"a": entry([2], [0, 4], "BF16")}, bytes(4)), "has dtype 'BF16'; known: F64"),
        (crafted({"a": entry([1], [0, 4], ["F32"])}, bytes(4)), "has dtype"),
        (crafted({"a": entry(1, [0, 4])}, bytes(4)), "bad shape"),
        (crafted({"a": entry([-1], [0, 4])}, bytes(4)), "bad shape"),
        (crafted({"a": entry([1.0], [0, 4])}, bytes(4)), "bad shape"),
        (crafted({"a": entry([True], [0, 4])}, bytes(4)), "bad shape"),
        (crafted({"a": entry([1] * 33, [0, 4])}, bytes(4)), "bad shape"),
        (crafted({"a": entry([1], [0])}, bytes(4)), "bad data_offsets"),
        (crafted({"a": entry([1], [0, 2**64])}, bytes(4)), "bad data_offsets"),
        (crafted({"a": entry([1], [4, 0])}, bytes(4)), "does not take"),
        (crafted({"a": entry([2**32, 2**32], [0, 0])}), "does not take"),
        (crafted({"a": entry([2], [0, 4])}, bytes(4)), "does not take"),
        (crafted({"a": entry([1], [4, 8])}, bytes(8)), "gap or an overlap"),
        (crafted({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)), "gap or an overlap"),
        (crafted({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)), "gap or an overlap"),
        (crafted({"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, bytes(8)), "gap or an overlap"),
        (crafted(GOOD, bytes(13)), "tensors hold 12 bytes, the file 13"),
        (crafted(GOOD, bytes(11)), "tensors hold 12 bytes, the file 11"),
    ],
)
def test_malformed_files_are_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: ") as caught:
        read(data)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_every_layout_numpy_has_is_saved_by_value() -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, ::3],
        "big endian": base.astype(">f4"),
        "zero-dimensional": np.array(3.5),
        "empty": np.zeros((0, 7), np.float16),
        "read only": np.frombuffer(b"\x01\x00", np.uint8),
        "flags": np.array([True, False]),
    }
    check_savable("model", tensors)
    data = to_bytes(tensors)
    for loaded in (read(data), safetensors.numpy.load(data)):
        for name, array in tensors.items():
            np.testing.assert_array_equal(loaded[name], array)
            assert loaded[name].shape == array.shape
            assert loaded[name].dtype == array.dtype.newbyteorder("<")


def test_arrays_are_views_of_the_verified_buffer() -> None:
    buffer = np.frombuffer(bytearray(to_bytes({"w": np.ones(4, np.float32)})), np.uint8)
    weight = parse(buffer, "f")["w"]
    assert np.shares_memory(weight, buffer) and weight.flags.writeable and weight.flags.aligned


def test_a_misaligned_array_is_copied_into_place() -> None:
    data = crafted(
        {"a": entry([1], [0, 1], "U8"), "b": entry([2], [1, 9])}, b"\x07" + np.ones(2, "<f4").tobytes()
    )
    loaded = read(data)
    assert loaded["b"].flags.aligned
    np.testing.assert_array_equal(loaded["b"], [1, 1])


def test_a_header_beyond_the_cap_is_refused_when_saving() -> None:
    tensors = {f"{i:0100d}": np.zeros(0) for i in range(60_000)}
    with pytest.raises(ValueError, match="need a header of"):
        to_bytes(tensors)


def test_the_library_sees_where_the_file_comes_from(tmp_path: Any) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(to_bytes({"w": np.zeros(1)}))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "np"}
