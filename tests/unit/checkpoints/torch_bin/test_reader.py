"""Files of torch.save: real ones read to the bit, every other kind refused by its rule."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_bin_lab import (
    LAYOUTS,
    archive,
    loaded,
    loaded_by_torch,
    pickled,
    same,
    saved,
    state_pickle,
    storage,
    tensor,
    text,
    varied_state,
    weights_archive,
)
from wafergpt.errors import CheckpointError

TWO = np.float32([1, 2]).tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_real_files_are_read_to_the_bit(layout: str, protocol: int) -> None:
    state = varied_state()
    assert same(loaded(saved(state, layout, pickle_protocol=protocol)), state)


def test_our_own_archives_are_what_torch_reads() -> None:
    """So that what is broken in the tests below is the one thing each names."""
    good = weights_archive(state_pickle(a=tensor("0", 2, (2,), (1,))), **{"0": TWO})
    assert loaded(good)["a"].tolist() == loaded_by_torch(good)["a"].tolist() == [1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_a_tensor_lay_does_not_matter(layout: str) -> None:
    data = saved({"a": torch.ones(2)}, layout)
    cuda = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu")
    if layout == "zip":
        cuda = data.replace(text("cpu"), text("gpu"))
        with pytest.raises(CheckpointError, match=r"data\.pkl' does not match its CRC-32"):
            loaded(cuda)
        table = (
            zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl").replace(text("cpu"), text("cuda:0"))
        )
        cuda = weights_archive(table, **{"0": np.float32([1, 1]).tobytes()})
    assert loaded(cuda)["a"].tolist() == [1, 1]


def test_storages_of_torch_cuda_and_views_of_very_old_files() -> None:
    view = storage("k", 4).replace(b"ctorch\n", b"ctorch.cuda\n")[:-2]
    view += b"(" + text("v") + b"K\x01K\x02ttQ"  # numbers 1 and 2 of 4
    old = b"ctorch._utils\n_rebuild_tensor\n(" + view + b"K\x00K\x02\x85K\x01\x85tR"
    head = saved({}, "legacy")
    data = head[: head.rindex(b"}q")] + b"}" + text("a") + old + b"s." + pickled(b"]" + text("k") + b"a")
    data += struct.pack("<q4f", 4, 5, 6, 7, 8)
    assert loaded(data)["a"].tolist() == [6, 7]


class Payload:
    """Unpickled, it makes a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_in_a_file_is_named_and_not_run(layout: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = saved({"weight": torch.ones(2), "evil": Payload(marker)}, layout)
    with pytest.raises(CheckpointError, match=r"names 'posix\.mkdir', which .* nothing of it was run"):
        loaded(data)
    assert not marker.exists()
    torch.load(io.BytesIO(data), weights_only=False)  # the planted bug: a reader that runs it is seen
    assert marker.exists()


OTHER_VALUES = {
    "a dict of more": ({"model": {"w": torch.ones(1)}}, "under 'model' not a tensor .* of type dict"),
    "a number": ({"w": torch.ones(1), "epoch": 3}, "under 'epoch' not a tensor but a value of type int"),
    "a list": ([torch.ones(1)], "holds a list, not a dict of tensors"),
    "nothing": ({}, "holds no tensors"),
    "a tensor": (torch.ones(1), "holds a Tensor, not a dict"),
    "number keys": ({1: torch.ones(1)}, "a key that is not text but int"),
    "a path as name": ({"../a": torch.ones(1)}, "is not the name of a tensor"),
    "complex": ({"w": torch.ones(1, dtype=torch.complex64)}, "names 'torch.ComplexFloatStorage'"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, "names 'torch._utils._rebuild_sparse_tensor'"),
    "float8": ({"w": torch.ones(2).to(torch.float8_e5m2)}, "names 'torch"),
    "conjugate": ({"w": torch._neg_view(torch.ones(2))}, "hooks or marks"),
    "a module": (torch.nn.Linear(2, 2), "names 'torch.nn.modules.linear.Linear'"),
    "an expanded view": ({"w": torch.ones(1).expand(10**6)}, "its tensors show 4000000 bytes of a file of"),
}


@pytest.mark.parametrize("case", OTHER_VALUES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_anything_but_a_flat_dict_of_dense_tensors_is_refused(layout: str, case: str) -> None:
    value, message = OTHER_VALUES[case]
    with pytest.raises(CheckpointError, match=message):
        loaded(saved(value, layout))


GOOD = tensor("0", 2, (2,), (1,))
TABLE = ("archive/data.pkl", state_pickle(a=GOOD))
NUMBERS = ("archive/data/0", TWO)
WHOLE = archive([TABLE, NUMBERS])


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", TABLE[1])
        packed.writestr("archive/data/0", bytes(10**6))
    return buffer.getvalue()


def overlapping() -> bytes:
    """The directory says twice where one record lies."""
    data = archive([TABLE, ("archive/data/0", TWO), ("archive/data/1", TWO)])
    first = data.index(b"PK\x03\x04", 10)
    second = data.index(b"PK\x03\x04", first + 4)
    at = data.rindex(struct.pack("<I", second))
    return data[:at] + struct.pack("<I", first) + data[at + 4 :]


def marked_as_folder() -> bytes:
    """Found by fuzzing: torch 2.13 reads uninitialised memory for such a record."""
    at = WHOLE.rindex(b"archive/data/0") - 46 + 38  # external attributes, in its entry of the directory
    return WHOLE[:at] + b"\x10" + WHOLE[at + 1 :]


ARCHIVES = {
    "compressed": (deflated(), "holds 'archive/data.pkl' compressed"),
    "encrypted": (archive([TABLE, NUMBERS], flags=1), "with flags 0x0001"),
    "cut off": (WHOLE[:-1], "is cut off, or carries something behind its end"),
    "trailing": (WHOLE + b"x", "is cut off, or carries something behind its end"),
    "twice": (archive([TABLE, NUMBERS, NUMBERS]), "holds 'archive/data/0' twice"),
    "overlapping": (overlapping(), "inside another record|where its directory says"),
    "wrong directory": (WHOLE.replace(b"PK\x01\x02", b"PK\x01\x03"), "damaged directory"),
    "marked as a folder": (marked_as_folder(), "'archive/data/0' marked as a folder"),
    "directory elsewhere": (WHOLE[:-6] + b"\xff\xff\0\0\0\0", "says that its directory is at byte 65535"),
    "slip": (archive([TABLE, NUMBERS, ("archive/../../x", b"")]), "not a file of weights"),
    "program": (archive([TABLE, ("archive/code/x.py", b"")]), "a TorchScript program"),
    "no table": (archive([NUMBERS]), "has no data.pkl"),
    "two roots": (archive([TABLE, ("other/data/0", TWO)]), "has no data.pkl, or several"),
    "no numbers": (archive([TABLE]), "lacks data/0"),
    "other length": (archive([TABLE, ("archive/data/0", TWO[:4])]), "4 bytes, not those of 2 numbers"),
    "unused": (archive([TABLE, NUMBERS, ("archive/data/1", TWO)]), "holds data/1, which no tensor uses"),
    "big-endian": (archive([TABLE, NUMBERS, ("archive/byteorder", b"big")]), "big-endian"),
    "behind the pickle": (archive([(TABLE[0], TABLE[1] + b"x"), NUMBERS]), "bytes behind its pickle"),
    "damaged numbers": (WHOLE.replace(TWO, TWO[::-1]), "damaged: 'data/0' does not match its CRC-32"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_are_what_torch_writes_or_refused(case: str) -> None:
    data, message = ARCHIVES[case]
    assert loaded(WHOLE)["a"].tolist() == [1, 2]
    with pytest.raises(CheckpointError, match=message):
        loaded(data)


HUGE = 2**47
TENSORS = {
    "beyond": (tensor("0", 2, (3,), (1,)), "beyond the 2 numbers"),
    "offset beyond": (tensor("0", 2, (1,), (1,), offset=2), "beyond the 2 numbers"),
    "wrapped": (tensor("0", 2, (2**32, 2**32), (2**32, 2**32)), "beyond the 2 numbers"),
    "huge": (tensor("0", 2, (2**63,), (0,)), "as the size of a tensor"),
    "negative size": (tensor("0", 2, (-1,), (1,)), "gives -1 as the size"),
    "negative stride": (tensor("0", 2, (2,), (-1,), offset=1), "gives -1 as the stride"),
    "negative offset": (tensor("0", 2, (1,), (1,), offset=-1), "gives -1 as the offset"),
    "other strides": (tensor("0", 2, (2,), (1, 1)), "other strides than dimensions"),
    "dimensions": (tensor("0", 2, (1,) * 33, (1,) * 33), "of 33 dimensions"),
    "huge storage": (tensor("0", HUGE, (2,), (1,)), "has 8 bytes, not those of"),
    "not a storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))\x89}tR", "not a storage"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_lie_within_their_storage_or_are_refused(case: str) -> None:
    made, message = TENSORS[case]
    with pytest.raises(CheckpointError, match=message):
        loaded(weights_archive(state_pickle(a=made), **{"0": TWO}))


def test_one_storage_has_one_kind() -> None:
    other = tensor("0", 1, (1,), (1,)).replace(b"FloatStorage", b"LongStorage")
    with pytest.raises(CheckpointError, match="describes storage '0' in two ways"):
        loaded(weights_archive(state_pickle(a=GOOD, b=other), **{"0": TWO}))


def test_damaged_files_of_the_old_layout_are_refused() -> None:
    data = saved(OrderedDict(a=torch.ones(2)), "legacy")
    for broken, message in (
        (data[:-1], "ends within storage"),
        (data + b"x", "1 bytes behind its storages"),
        (data[:-16] + b"\3" + data[-15:], "another length than its tensors say"),
        (data[:40], "ends early"),
        (data.replace(b"M\xe9\x03", b"M\xea\x03", 1), "of another version"),
        (data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian"),
        (pickled(b"}"), "not one of torch.save"),
    ):
        with pytest.raises(CheckpointError, match=message):
            loaded(broken)


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"GGUF\3", "GGUF"),
        (b"\x93NUMPY", "NumPy"),
        (b"<!doctype html>", "web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        (b"anything", "neither a zip archive nor a pickle"),
        (b"", "neither"),
    ],
)  # fmt: skip
def test_other_files_under_that_name_are_recognised(start: bytes, hint: str) -> None:
    with pytest.raises(CheckpointError, match=hint):
        loaded(start)
