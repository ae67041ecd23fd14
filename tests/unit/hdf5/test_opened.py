"""HDF5 with its doors shut: nothing outside the file, no plugin, no promise without bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hdf5_lab
from wafergpt.errors import DataError, MissingDependencyError
from wafergpt.hdf5 import opened as opened_module
from wafergpt.hdf5.lz4 import decode_block, decode_chunk
from wafergpt.hdf5.opened import OpenedHDF5


def refuse(reason: str) -> NoReturn:
    raise DataError(reason)


@pytest.mark.parametrize("kind", hdf5_lab.KINDS)
def test_what_leads_astray_is_refused_and_named(kind: str, tmp_path: Path) -> None:
    path = hdf5_lab.hostile(tmp_path / "hostile.h5", kind)
    with pytest.raises(DataError) as caught, OpenedHDF5(path, refuse) as file:
        file.read("data")
    message = str(caught.value)
    assert hdf5_lab.KINDS[kind] in message and "hostile.h5" in message and "\n" not in message


def test_a_bomb_is_refused_by_those_who_read_whole_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (70 << 20,), "i1", chunks=(1 << 20,), compression="gzip")[:] = 0
    with OpenedHDF5(tmp_path / "a.h5", refuse) as file:
        assert file.shape("data") == (70 << 20,)  # read in pieces, it harms nobody
    with pytest.raises(DataError, match=r"'data' promises 73400320 bytes and has \d{5}$"):
        OpenedHDF5(tmp_path / "a.h5", refuse, max_ratio=16).read("data")


def test_links_are_refused_when_names_are_listed(tmp_path: Path) -> None:
    path = hdf5_lab.hostile(tmp_path / "hostile.h5", "an external link")
    with pytest.raises(DataError, match="soft or external link"), OpenedHDF5(path, refuse) as file:
        file.names()


def test_a_path_into_a_group_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/data"] = np.arange(3)
    with (
        pytest.raises(DataError, match="not a name of the root"),
        OpenedHDF5(tmp_path / "a.h5", refuse) as file,
    ):
        file.read("group/data")


def test_the_library_alone_would_follow_the_link(tmp_path: Path) -> None:
    """The suite can fail: what is refused above is really there to be followed."""
    for kind in ("an external link", "a virtual data set"):
        path = hdf5_lab.hostile(tmp_path / "hostile.h5", kind)
        with h5py.File(path) as file:
            assert list(file["data"][:3]) == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_what_is_no_hdf5_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.h5': is not an HDF5 file"):
        OpenedHDF5(path, refuse)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        OpenedHDF5(tmp_path / "none.h5", refuse)
    with pytest.raises(DataError, match="is not a regular file"):
        OpenedHDF5(tmp_path, refuse)


@pytest.mark.parametrize(
    "packing",
    [
        {},
        {"compression": "gzip"},
        {"compression": "lzf", "shuffle": True, "fletcher32": True},
        {"chunks": (3, 4)},
        {"dtype": ">f4"},
        {"dtype": "f2"},
    ],
)
def test_plain_and_packed_data_read_back_whole_and_in_part(packing: dict, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 7)).astype(packing.get("dtype", "f4"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=values, **packing)
        file["scalar"] = np.int32(5)
    with OpenedHDF5(tmp_path / "a.h5", refuse) as file:
        assert np.array_equal(file.read("data"), values) and file.shape("data") == (10, 7)
        assert np.array_equal(file.read("data", 4, 9), values[4:9])
        assert file.read("scalar") == 5


def test_contiguous_data_are_a_private_map(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="f4").reshape(10, 100)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = values
    with OpenedHDF5(tmp_path / "a.h5", refuse) as file:
        array = file.read("data")
    before = (tmp_path / "a.h5").read_bytes()
    array += 1  # ours to change, the file's not; and valid after the file was closed
    assert np.array_equal(array, values + 1) and (tmp_path / "a.h5").read_bytes() == before


def test_types_of_other_widths_are_left_to_the_library(tmp_path: Path) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign, exponent and mantissa of bfloat16
    kind.set_size(2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = h5py.h5d.create(file.id, b"data", kind, h5py.h5s.create_simple((4,)))
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1, -2, 0.5, 3], "f4"))
    with OpenedHDF5(tmp_path / "a.h5", refuse) as file:
        assert np.array_equal(file.read("data").astype("f4"), [1, -2, 0.5, 3])


@pytest.mark.parametrize("chunks", [(10, 7), (3, 4), (1, 7), (4, 1)])
def test_lz4_is_read_without_a_plugin(chunks: tuple[int, int], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {
        "noise": random.normal(size=(10, 7)),
        "runs": np.zeros((10, 7)),
        "mixed": np.arange(70).reshape(10, 7),
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in values.items():
            hdf5_lab.write_lz4(file, name, array.astype("f4"), chunks)
    with OpenedHDF5(tmp_path / "a.h5", refuse) as file:
        for name, array in values.items():
            assert np.array_equal(file.read(name), array.astype("f4"))
            assert np.array_equal(file.read(name, 2, 9), array.astype("f4")[2:9])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(1, 400)), max_size=12), st.integers(1, 300))
def test_what_an_encoder_packs_comes_back(parts: list[tuple[bytes, int]], block_bytes: int) -> None:
    data = b"".join(piece * times for piece, times in parts)
    assert decode_block(hdf5_lab.lz4_block(data), len(data)) == data
    assert decode_chunk(hdf5_lab.pack_lz4(data, block_bytes), len(data)) == data


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 4000))
def test_any_bytes_give_the_promised_size_or_a_value_error(data: bytes, size_bytes: int) -> None:
    for decode in (decode_block, decode_chunk):
        try:
            assert len(decode(data, size_bytes)) == size_bytes
        except ValueError as error:
            assert "LZ4" in str(error)


def test_the_reference_block_of_the_format() -> None:
    """By hand from the format's description: five literals, then ten bytes at distance 1, over itself."""
    assert (
        decode_block(bytes([0x56]) + b"abcde" + bytes([1, 0]) + bytes([0x10]) + b"z", 16)
        == b"abcdeeeeeeeeeeez"
    )


def test_h5py_missing_is_said_with_the_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafergpt\[modelzoo\]'"):
        opened_module.load_h5py()
