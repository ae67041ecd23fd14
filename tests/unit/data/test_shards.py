"""Shards on disk: what is written comes back, and nothing changed, cut, swapped or foreign is opened."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from wafergpt.data.packing import Packer, n_windows
from wafergpt.data.shards import Manifest, ShardSet, ShardWriter
from wafergpt.errors import DataError

N_TOKENS = 2500


def write(folder: Path, ids: np.ndarray, vocab_size: int = 300) -> None:
    writer = ShardWriter(folder, vocab_size, 1000)
    for part in np.array_split(ids, 7):
        writer.append(part)
    Manifest(
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer_sha256="0" * 64,
        n_tokens=len(ids),
        n_documents=1,
        n_text_bytes=len(ids),
        shards=writer.finish(),
    ).save(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids = np.random.default_rng(0).integers(0, 300, N_TOKENS).astype(np.uint16)
    write(tmp_path / "set", ids)
    return tmp_path / "set"


def test_reads_any_range_across_shards(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, N_TOKENS)
    shards = ShardSet.open(folder)
    assert [shard.n_tokens for shard in shards.manifest.shards] == [1000, 1000, 500]
    for start, n in ((0, 2500), (999, 2), (1000, 1), (950, 1200), (2500, 0), (0, 0)):
        assert np.array_equal(shards.read(start, n), ids[start : start + n])
    for start, n in ((-1, 1), (2500, 1), (0, 2501)):
        with pytest.raises(DataError, match="outside the 2500"):
            shards.read(start, n)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    write(tmp_path / "set", np.array([vocab_size - 1] * 7, np.uint32), vocab_size)
    shards = ShardSet.open(tmp_path / "set")
    assert shards.dtype == dtype
    assert shards.read(0, 7).tolist() == [vocab_size - 1] * 7


def test_writer_refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id 300 is outside the vocabulary of 300"):
        ShardWriter(tmp_path / "set", 300, 10).append(np.array([1, 300], np.uint16))


@pytest.mark.parametrize("n_flips", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_every_flipped_bit_is_caught_and_named(folder: Path, n_flips: int) -> None:
    rng = random.Random(0)
    for _ in range(n_flips):
        path = folder / f"shard-0000{rng.randrange(3)}.bin"
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"{path.name}' has changed"):
            ShardSet.open(folder)
        path.write_bytes(good)
    ShardSet.open(folder)


@pytest.mark.parametrize("keep_bytes", [0, 1, 1998, 1999])
def test_truncation_is_caught_even_without_hashing(folder: Path, keep_bytes: int) -> None:
    path = folder / "shard-00001.bin"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    with pytest.raises(DataError, match=r"shard-00001\.bin' is truncated"):
        ShardSet.open(folder, verify=False)


def test_longer_missing_and_swapped_shards(folder: Path) -> None:
    first, second = folder / "shard-00000.bin", folder / "shard-00001.bin"
    good_first, good_second = first.read_bytes(), second.read_bytes()
    first.write_bytes(good_first + b"\0\0")
    with pytest.raises(DataError, match="is too long"):
        ShardSet.open(folder)
    first.write_bytes(good_second)
    second.write_bytes(good_first)
    with pytest.raises(DataError, match="has changed"):
        ShardSet.open(folder)
    first.unlink()
    with pytest.raises(DataError, match=r"shard-00000\.bin' is missing"):
        ShardSet.open(folder)


def test_id_outside_the_vocabulary_in_a_shard_is_found(tmp_path: Path) -> None:
    """A shard whose hash is right but whose manifest belongs to a smaller vocabulary."""
    write(tmp_path / "set", np.array([1, 2, 299, 4], np.uint16))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 200}))
    with pytest.raises(DataError, match="holds token id 299 at 2, outside the vocabulary of 200"):
        ShardSet.open(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_tokens": 7}, "do not add up"),
        ({"format_version": 99}, "format 99 is not 1"),
        ({"surprise": 1}, "unknown config key 'surprise'"),
        ({"shards": [{"file": "../../x", "n_tokens": 2500, "sha256": ""}]}, "not a plain file name"),
    ],
)
def test_damaged_manifests(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        ShardSet.open(folder)


def test_missing_and_empty(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        ShardSet.open(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        ShardSet.open(folder)
    write(tmp_path / "empty", np.array([], np.uint16))
    with pytest.raises(DataError, match="holds no tokens"):
        ShardSet.open(tmp_path / "empty")


def test_packing_ends_every_document_once() -> None:
    def ids(*values: int) -> np.ndarray:
        return np.array(values, np.uint16)

    out: list[int] = []
    packer = Packer(lambda part: out.extend(part.tolist()), end_of_text_id=9)
    for part, ends in ((ids(1, 2), False), (ids(3), True), (ids(), True), (ids(4), False), (ids(), True)):
        packer.add(part, ends_document=ends)
    assert out == [1, 2, 3, 9, 4, 9]
    assert (packer.n_tokens, packer.n_documents) == (6, 2)


@pytest.mark.parametrize(("n_tokens", "expected"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2)])
def test_number_of_windows(n_tokens: int, expected: int) -> None:
    assert n_windows(n_tokens, 8) == expected
