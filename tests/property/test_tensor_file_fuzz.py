"""Damaged and hostile safetensors files: refused by name, or read exactly as the library reads them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wafergpt.checkpoints.tensor_file import parse, serialized
from wafergpt.errors import CheckpointError

DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?")
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    )
)
groups = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__"), arrays, max_size=5
)


def to_bytes(tensors: dict[str, Any]) -> bytes:
    return b"".join(serialized(tensors))


def read(data: bytes) -> dict[str, Any]:
    return parse(np.frombuffer(bytearray(data), np.uint8), "f")


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and left[n].tobytes() == right[n].tobytes()
        for n in left
    )


@settings(max_examples=150, deadline=None)
@given(groups)
def test_the_library_and_we_read_each_other(tensors: dict[str, Any]) -> None:
    ours = to_bytes(tensors)
    assert same(safetensors.numpy.load(ours), tensors)
    assert same(read(ours), tensors)
    # The library's numpy writer mixes up 0-d and non-contiguous input, so it is given plain copies.
    theirs = safetensors.numpy.save({name: np.array(array, order="C") for name, array in tensors.items()})
    assert same(read(theirs), tensors)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few byte edits, biased towards the header, where structure lives."""
    out, header_end = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.randint(1, 3)):
        position = rng.randrange(header_end if rng.random() < 0.9 else len(out))
        edit = rng.choice(("set", "digit", "insert", "delete", "swap"))
        if edit == "set":
            out[position] = rng.randrange(256)
        elif edit == "digit":
            digits = [i for i, byte in enumerate(out[:header_end]) if 48 <= byte <= 57]
            out[rng.choice(digits)] = 48 + rng.randrange(10)
        elif edit == "insert":
            out.insert(position, rng.choice(b'0123456789{}[],:" '))
        elif edit == "delete":
            del out[position]
        else:
            other = rng.randrange(header_end)
            out[position], out[other] = out[other], out[position]
    return bytes(out)


def fuzz(n_files: int, seed: int) -> int:
    """How many mutants were accepted; asserts that the library reads each of those and reads the same."""
    rng, n_accepted = random.Random(seed), 0
    data = to_bytes(
        {"wte": np.arange(12, dtype="<f4").reshape(3, 4), "b": np.arange(3, dtype="<i8"), "e": np.zeros(0)}
    )
    for _ in range(n_files):
        mutant = mutated(data, rng)
        try:
            tensors = read(mutant)
        except CheckpointError as error:
            assert "\n" not in str(error)
            continue
        n_accepted += 1
        assert same(tensors, safetensors.numpy.load(mutant))
    return n_accepted


def test_what_is_accepted_is_what_the_library_reads() -> None:
    n_files = 4_000
    assert 0 < fuzz(n_files, seed=1) < n_files  # mutants of names or data stay valid; the rest is refused


@pytest.mark.long
def test_fuzz_in_depth() -> None:
    assert fuzz(300_000, seed=2) > 0
