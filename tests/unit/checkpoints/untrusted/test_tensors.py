"""Mapped safetensors files and sharded ones: values, widening, what is refused."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.checkpoints.untrusted.shards import INDEX_NAME, AllTensors, open_tensors
from wafergpt.checkpoints.untrusted.tensors import map_tensors
from wafergpt.errors import CheckpointError

FILE = "model.safetensors"
RANDOM = np.random.default_rng(0)


def written(path: Path, tensors: dict[str, Any], name: str = FILE) -> Path:
    (path / name).write_bytes(safetensors.numpy.save(tensors))
    return path


def raw(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    (path / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def opened(path: Path) -> AllTensors:
    with UntrustedFolder(path) as folder:
        return open_tensors(folder)


def refused(path: Path, rule: str) -> None:
    with pytest.raises(CheckpointError) as failure:
        opened(path).check_finite()
    assert rule in str(failure.value)
    assert "\n" not in str(failure.value)


def test_values_are_the_files_and_writes_stay_private(tmp_path: Path) -> None:
    tensors = {
        "a": RANDOM.standard_normal((3, 5)).astype(np.float32),
        "b": RANDOM.standard_normal(7).astype(np.float16),
        "c": np.arange(4),
        "empty": np.zeros((0, 3), np.float32),
    }
    before = (written(tmp_path, tensors) / FILE).read_bytes()
    mapped = opened(tmp_path)
    assert set(mapped.names) == set(tensors)
    assert mapped.size_bytes == sum(array.nbytes for array in tensors.values())
    for name, array in tensors.items():
        assert mapped.shape(name) == array.shape
        assert np.array_equal(mapped.array(name), array.astype(np.float32) if name == "b" else array)
    assert mapped.array("b").dtype == np.float32
    assert "a" in mapped
    assert np.shares_memory(mapped.array("a"), mapped.array("a"))
    mapped.array("a")[:] = 0
    assert (tmp_path / FILE).read_bytes() == before


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    values = np.array([[0.0, -0.0, 1.5], [-3e38, 1e-40, 2.0]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    entry = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    mapped = opened(raw(tmp_path, {"w": entry}, bits.tobytes()))
    assert mapped.dtype_name("w") == "BF16"
    assert mapped.array("w").dtype == np.float32
    assert mapped.array("w").tobytes() == exact.tobytes()


def test_a_misaligned_tensor_is_read(tmp_path: Path) -> None:
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    mapped = opened(raw(tmp_path, header, b"\7" + np.array([1.5, -2], "<f4").tobytes()))
    assert mapped.array("w").tolist() == [1.5, -2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_nan_and_infinity_are_found_wherever_they_are(value: float, dtype: str, tmp_path: Path) -> None:
    count = 700_000  # over one buffer of the scan in every dtype but the last position
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    values = np.zeros(count, "<f4")
    values[-1] = value
    data = (
        (values.view(np.uint32) >> 16).astype("<u2") if dtype == "BF16" else values.astype(kinds[dtype])
    ).tobytes()
    header = {
        "bad": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(data)]},
        "good": {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]},
    }
    refused(raw(tmp_path, header, data + bytes(4)), "'bad' holds NaN or infinity")
    mapped = opened(tmp_path)
    mapped.check_finite(["good"])
    with pytest.raises(CheckpointError, match="'bad' holds NaN"):
        mapped.array("bad")


@pytest.mark.parametrize("name", ["../x", "a..b", "a\0b", "a\nb", "", "x" * 1_000_000, "/etc/passwd", "é"])
def test_names_that_no_model_has_are_refused(name: str, tmp_path: Path) -> None:
    refused(
        raw(tmp_path, {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, b""),
        "is not the name of a tensor",
    )


def test_a_file_changed_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    mapped = opened(written(tmp_path, {"a": np.ones(3, np.float32)}))
    os.utime(tmp_path / FILE, (1, 1))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        mapped.array("a")


def test_the_mapping_goes_with_its_last_array(tmp_path: Path) -> None:
    def is_mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    mapped = opened(written(tmp_path, {"a": np.ones((3, 2), np.float32)}))
    view = mapped.array("a").T
    del mapped
    gc.collect()
    assert is_mapped()
    assert view.sum() == 6
    del view
    gc.collect()
    assert not is_mapped()


def test_old_checks_stay(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"1234567")
    refused(tmp_path, "7 bytes are too few")
    (tmp_path / FILE).write_bytes((1 << 62).to_bytes(8, "little"))
    refused(tmp_path, "over the limit")
    (tmp_path / FILE).write_bytes((3).to_bytes(8, "little") + b" {}")
    refused(tmp_path, "header is not a JSON object")
    (tmp_path / FILE).unlink()
    refused(tmp_path, "has neither")


# -- shards


def sharded(path: Path, **changes: Any) -> Path:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    written(path, {"a": np.ones(2, np.float32)}, one)
    written(path, {"b": np.zeros(3, np.float32)}, two)
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": one, "b": two}, **changes}
    (path / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    return path


def test_shards_are_one_set_of_tensors(tmp_path: Path) -> None:
    tensors = opened(sharded(tmp_path))
    assert tensors.names == ("a", "b")
    assert tensors.array("b").tolist() == [0, 0, 0]
    assert tensors.label("b").endswith("model-00002-of-00002.safetensors")
    assert len(tensors) == 2
    with UntrustedFolder(tmp_path) as folder:
        assert list(map_tensors(folder, tensors.files[0]).entries) == ["a"]


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"weight_map": {"a": "../x.safetensors", "b": TWO}}, "not the name of a shard"),
        ({"weight_map": {"a": "/tmp/x.safetensors", "b": TWO}}, "not the name of a shard"),
        ({"weight_map": {"a": ".safetensors", "b": TWO}}, "not the name of a shard"),
        ({"weight_map": {"a": 1, "b": TWO}}, "not the name of a shard"),
        ({"weight_map": {"a": "model-3.safetensors", "b": TWO}}, "does not name the shard"),
        ({"weight_map": {"a": ONE, "b": TWO, "c": "other.safetensors"}}, "which is missing"),
        ({"weight_map": {"a": ONE}}, "does not name the shard"),
        ({"weight_map": {"a": ONE, "b": ONE, "c": TWO}}, "'b' is in"),
        ({"weight_map": {"a": ONE, "b": TWO, "c": TWO}}, "where it is not"),
        ({"weight_map": {}}, "weight_map is not"),
        ({"weight_map": []}, "weight_map is not"),
        ({"metadata": {"total_size": 19}}, "19 bytes; they have 20"),
        ({"metadata": {"total_size": 20.0}}, "not a whole number"),
        ({"metadata": []}, "metadata is not"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_an_index_that_lies_is_refused(changes: dict[str, Any], rule: str, tmp_path: Path) -> None:
    refused(sharded(tmp_path, **changes), rule)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    written(tmp_path, {"a": np.ones(2, np.float32), "b": np.zeros(3, np.float32)}, TWO)
    refused(tmp_path, "tensor 'a' is in")
    written(tmp_path, {"b": np.zeros(3, np.float32), "c": np.zeros(3, np.float32)}, TWO)
    refused(tmp_path, "does not name tensor 'c'")
    written(tmp_path, {"a": np.ones(2, np.float32)})
    refused(tmp_path, "which one is meant")
