"""Damaged .bin files: refused by name, or read exactly as torch's own restricted reader reads them."""

from __future__ import annotations

import dataclasses
import io
import random
import struct
import zipfile
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_bin_lab import LAYOUTS, loaded, loaded_by_torch, same, saved
from wafergpt.checkpoints.torch_bin import reader
from wafergpt.errors import CheckpointError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of a storage: any order of dimensions, steps, offsets, expansions within reason."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    whole = torch.arange(3 + 2 * max(1, torch.Size(shape).numel())).to(draw(st.sampled_from(DTYPES)))
    first, step = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    dense = whole[first::step][: torch.Size(shape).numel()].reshape(shape)
    view = dense.permute(draw(st.permutations(range(len(shape)))))
    return torch.nn.Parameter(view) if view.is_floating_point() and draw(st.booleans()) else view


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(NAMES, views(), min_size=1, max_size=4), st.sampled_from(sorted(LAYOUTS)))
def test_any_state_dict_is_read_to_the_bit(state: dict[str, torch.Tensor], layout: str) -> None:
    assert same(loaded(saved(state, layout)), state)


def sample() -> dict[str, torch.Tensor]:
    matrix = torch.arange(12.0).reshape(3, 4)
    return {"wte": matrix, "head": matrix, "turned": matrix.T, "ids": torch.arange(3), "h": matrix[1:].half()}


def edited(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of bytes, some of the same length."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        edit = rng.choice(("set", "near", "near", "copy", "insert", "delete"))
        if edit == "set":
            out[at] = rng.randrange(256)
        elif edit == "near":
            out[at] = (out[at] + rng.choice((-1, 1))) % 256
        elif edit == "copy":
            out[at] = out[rng.randrange(len(out))]
        elif edit == "insert":
            out.insert(at, out[rng.randrange(len(out))])
        elif len(out) > 1:
            del out[at]
    return bytes(out)


def mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """Edits of the pickle with its checksum put right, or of the directory."""
    packed = zipfile.ZipFile(io.BytesIO(data))
    record = packed.getinfo("archive/data.pkl")
    table = packed.read(record)
    if rng.random() < 0.2:
        start = packed.start_dir
        return data[:start] + edited(data[start:], rng)
    changed = edited(table, rng)
    if len(changed) != len(table):
        changed = changed[: len(table)].ljust(len(table), b".")
    old, new = (struct.pack("<I", zlib.crc32(part)) for part in (table, changed))
    return data.replace(table, changed).replace(old, new)


def mutated_legacy(data: bytes, rng: random.Random) -> bytes:
    return edited(data, rng)


MUTATIONS = {"zip": mutated_zip, "legacy": mutated_legacy}


def differences(n_files: int, seed: int) -> tuple[list[str], int]:
    """What we accept and torch refuses or reads otherwise, and how many we accept."""
    rng, found, n_accepted = random.Random(seed), [], 0
    whole = {layout: saved(sample(), layout) for layout in LAYOUTS}
    for number in range(n_files):
        layout = rng.choice(sorted(LAYOUTS))
        data = MUTATIONS[layout](whole[layout], rng)
        try:
            ours = loaded(data)
        except CheckpointError as error:
            assert "\n" not in str(error)
            continue
        n_accepted += 1
        problem = disagreement(data, ours)
        if problem:
            found.append(f"{layout} file {number}: {problem}")
    return found, n_accepted


def disagreement(data: bytes, ours: dict[str, Any]) -> str:
    try:
        theirs = loaded_by_torch(data)
    except Exception as error:
        return f"torch refuses it: {error}"
    return "" if same(ours, theirs) else "torch reads other values"


@pytest.mark.parametrize("n_files", [1500, pytest.param(60_000, marks=pytest.mark.long)])
def test_what_we_accept_torch_reads_alike(n_files: int) -> None:
    found, n_accepted = differences(n_files, seed=n_files)
    assert found == []
    assert n_accepted > n_files // 100  # else nothing was compared


def test_the_comparison_sees_a_reader_that_forgets_the_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reader._tensor

    def dense(arguments: tuple[Any, ...]) -> reader.Tensor:
        tensor = whole(arguments)
        return dataclasses.replace(tensor, strides=torch.empty(tensor.shape, device="meta").stride())

    monkeypatch.setattr(reader, "_tensor", dense)
    found, _ = differences(60, seed=1)
    assert found
