"""Model Zoo data sets <-> prepared folders: what is written reads back equal, also as the Zoo reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hdf5_lab
from wafergpt.data.hdf5 import data_files, import_folder, read_corpus, read_samples, write_samples
from wafergpt.data.loader import Loader
from wafergpt.data.shards import Manifest, ShardSet, ShardWriter
from wafergpt.errors import ConfigError, DataError
from wafergpt.tokenizer.bpe import Tokenizer

VOCAB_SIZE = 300


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["In the beginning was the word, and the word was short. " * 40], 270)


def shards_of(ids: np.ndarray, folder: Path) -> ShardSet:
    writer = ShardWriter(folder, VOCAB_SIZE, shard_tokens=37)
    writer.append(ids.astype(np.uint16))
    Manifest(
        vocab_size=VOCAB_SIZE,
        end_of_text_id=0,
        tokenizer_sha256="0" * 64,
        n_tokens=len(ids),
        n_documents=1,
        n_text_bytes=len(ids),
        shards=writer.finish(),
    ).save(folder)
    return ShardSet.open(folder)


def write_h5(path: Path, data: np.ndarray, **attributes: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = data
        file.attrs.update(attributes)
    return path


def windows(ids: np.ndarray, seq_len: int, stride: int) -> np.ndarray:
    """[n, 3, T], written independently: row by row."""
    rows = []
    for start in range(0, len(ids) - seq_len, stride):
        window = ids[start : start + seq_len + 1]
        rows.append([window[:-1], np.ones(seq_len), window[1:]])
    return np.array(rows, np.int32)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 200), seq_len=st.integers(1, 20), per_file=st.integers(1, 9))
def test_written_samples_are_the_loaders_windows(
    n: int, seq_len: int, per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hdf5")
    ids = np.random.default_rng(n).integers(0, VOCAB_SIZE, n)
    shards = shards_of(ids, folder / "train")
    if n <= seq_len:
        with pytest.raises(DataError, match="fewer than one window"):
            write_samples(shards, folder / "zoo", seq_len)
        assert not (folder / "zoo").exists()
        return
    n_samples = write_samples(shards, folder / "zoo", seq_len, samples_per_file=per_file)
    found = np.concatenate(list(read_samples(folder / "zoo")))
    assert np.array_equal(found, windows(ids, seq_len, seq_len)) and len(found) == n_samples
    inputs, labels = Loader(shards, seq_len, shuffle=False).batch(0, n_samples)
    assert np.array_equal(found[:, 0], inputs) and np.array_equal(found[:, 2], labels)


def test_the_files_are_as_the_zoo_expects_them(tmp_path: Path) -> None:
    """HDF5IterableDataset takes n_examples and rows of `data`; the order of files is that of their names."""
    ids = np.arange(100) % VOCAB_SIZE
    write_samples(shards_of(ids, tmp_path / "train"), tmp_path / "zoo", 9, samples_per_file=4)
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == [
        "data_params.json",
        *(f"output_chunk_{i}.h5" for i in range(3)),
    ]
    assert json.loads((tmp_path / "zoo" / "data_params.json").read_text())["features"] == [
        "input_ids",
        "attention_mask",
        "labels",
    ]
    counts = []
    for path in data_files(tmp_path / "zoo"):
        with h5py.File(path) as file:
            data = file["data"]
            counts.append(int(file.attrs["n_examples"]))
            assert data.shape == (counts[-1], 3, 9) and data.dtype == np.int32
            assert data.chunks == (1, 3, 9) and data.compression == "gzip"
            assert (data[:, 1] == 1).all()
    assert counts == [4, 4, 3]
    with pytest.raises(ConfigError, match="exists already"):
        write_samples(shards_of(ids, tmp_path / "more"), tmp_path / "zoo", 9)


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    """By name, chunk 10 would stand before chunk 2: the names are padded where there are that many."""
    ids = np.arange(260) % VOCAB_SIZE
    write_samples(shards_of(ids, tmp_path / "train"), tmp_path / "zoo", 10, samples_per_file=2)
    assert len(data_files(tmp_path / "zoo")) == 13
    assert np.array_equal(np.concatenate(list(read_samples(tmp_path / "zoo"))), windows(ids, 10, 10))


@pytest.mark.parametrize("stride", [8, 9], ids=["stride T", "stride T + 1"])
def test_samples_become_a_folder_that_trains(stride: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = np.random.default_rng(3).integers(0, tokenizer.vocab_size, 8 * 9 * 4 + 1)
    samples = windows(ids, 8, stride)
    write_h5(tmp_path / "zoo" / "a.h5", samples[:20], n_examples=20)
    write_h5(tmp_path / "zoo" / "b.h5", samples[20:], n_examples=len(samples) - 20)
    imported = import_folder(tmp_path / "zoo", tmp_path / "out", tokenizer)
    shards = ShardSet.open(tmp_path / "out")
    n_tokens = len(samples) * stride + (stride == 8)
    assert np.array_equal(shards.read(0, shards.n_tokens), ids[:n_tokens])
    assert imported.manifest.n_documents == int((ids[:n_tokens] == tokenizer.end_of_text_id).sum())
    text = tokenizer.decode_bytes(i for i in ids[:n_tokens] if i != tokenizer.end_of_text_id)
    assert imported.manifest.n_text_bytes == len(text)
    assert bool(imported.notes) == (stride == 9)
    assert Tokenizer.load(tmp_path / "out").sha256 == tokenizer.sha256


def test_a_corpus_becomes_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = np.random.default_rng(4).integers(0, tokenizer.vocab_size, 5000).astype(np.uint16)
    write_h5(tmp_path / "zoo" / "0.h5", ids[:3000])
    write_h5(tmp_path / "zoo" / "1.h5", ids[3000:])
    assert np.array_equal(np.concatenate(list(read_corpus(tmp_path / "zoo"))), ids)
    assert import_folder(tmp_path / "zoo", tmp_path / "out", tokenizer).notes == ()
    shards = ShardSet.open(tmp_path / "out")
    assert np.array_equal(shards.read(0, shards.n_tokens), ids)


def test_there_and_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = np.random.default_rng(5).integers(0, 250, 1001)
    shards = shards_of(ids, tmp_path / "train")
    write_samples(shards, tmp_path / "zoo", 50, samples_per_file=7)
    assert import_folder(tmp_path / "zoo", tmp_path / "out", tokenizer).notes == ()
    again = ShardSet.open(tmp_path / "out")
    assert np.array_equal(again.read(0, again.n_tokens), ids)


GOOD = windows(np.arange(100), 8, 8)


@pytest.mark.parametrize(
    ("data", "attributes", "message"),
    [
        (GOOD, {"n_examples": 99}, "says n_examples = 99 and holds 12"),
        (np.zeros((4, 5, 8), np.int32), {}, "holds 5 rows a sample (variable sequence length)"),
        (np.zeros((4, 2, 8), np.int32), {}, "'data' has shape [4, 2, 8], not [n, 3, T]"),
        (GOOD.astype(np.float32), {}, "'data' holds float32, not whole numbers"),
        (GOOD - 1, {}, "holds a negative id"),
        (GOOD.astype(np.int64) << 32, {}, "one of more than 31 bits"),
        (GOOD * np.array([1, 2, 1])[None, :, None], {}, "a loss mask that is neither 0 nor 1"),
        (GOOD * np.array([1, 0, 1])[None, :, None], {}, "loss mask leaves out 8 of 8 tokens"),
        (GOOD[:, [0, 1, 0]], {}, "whose labels are not its inputs moved by one"),
        (GOOD + np.array([200, 0, 200])[None, :, None], {}, "outside the tokenizer's vocabulary of 270"),
        (np.zeros((0, 3, 8), np.int32), {}, "holds no tokens"),
    ],
)
def test_what_cannot_be_read_is_refused(
    data: np.ndarray, attributes: dict, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_h5(tmp_path / "zoo" / "a.h5", data, **attributes)
    with pytest.raises(DataError) as caught:
        import_folder(tmp_path / "zoo", tmp_path / "out", tokenizer)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["an external link", "a virtual data set", "a promise of a terabyte"])
def test_hostile_files_are_refused(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    hdf5_lab.hostile(tmp_path / "a.h5", kind)
    with pytest.raises(DataError, match=r"a\.h5"):
        import_folder(tmp_path / "a.h5", tmp_path / "out", tokenizer)


def test_lengths_must_agree_and_files_be_there(tmp_path: Path) -> None:
    write_h5(tmp_path / "zoo" / "a.h5", GOOD)
    write_h5(tmp_path / "zoo" / "b.h5", windows(np.arange(50), 4, 4))
    with pytest.raises(DataError, match=r"b\.h5': has sequences of 4 tokens, the files before it of 8"):
        list(read_samples(tmp_path / "zoo"))
    with pytest.raises(DataError, match=r"holds no \.h5 files"):
        data_files(tmp_path)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["other"] = GOOD
    with pytest.raises(DataError, match=r"c\.h5': has no data set 'data'"):
        list(read_corpus(tmp_path / "c.h5"))
