"""The order of samples: a function of (seed, epoch, index), every window once, the same for all readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wafergpt.data import loader as loader_module
from wafergpt.data.loader import Loader, permute
from wafergpt.data.shards import Manifest, ShardSet, ShardWriter
from wafergpt.errors import ConfigError, DataError

GOLDEN_FIRST = [444, 105, 970, 519, 392, 8, 97, 284]
GOLDEN_LARGE = [
    551721289592,
    737008706973,
    707884439670,
    207495985995,
    456617747846,
    454211571532,
    838939862383,
    144451608250,
]


def shard_set(folder: Path, n_tokens: int, shard_tokens: int = 1000, vocab_size: int = 70_000) -> ShardSet:
    """Ids 0, 1, 2, … so that a window shows where it was cut."""
    writer = ShardWriter(folder, vocab_size, shard_tokens)
    writer.append(np.arange(n_tokens, dtype=np.uint32))
    shards = writer.finish()
    Manifest(
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer_sha256="0" * 64,
        n_tokens=n_tokens,
        n_documents=1,
        n_text_bytes=4 * n_tokens,
        shards=shards,
    ).save(folder)
    return ShardSet.open(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("data") / "set", 5 * 997 + 3, shard_tokens=640)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 997, 4096])
def test_permutation_is_one(n: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**63, 10**6), (-1, 3)):
        assert sorted(permute(np.arange(n, dtype=np.uint64), n, seed, epoch).tolist()) == list(range(n))


def test_permutation_is_the_published_one() -> None:
    """Golden: a resumed run depends on these values, so they never change."""
    assert permute(np.arange(8, dtype=np.uint64), 1000, 0, 0).tolist() == GOLDEN_FIRST
    assert permute(np.arange(8, dtype=np.uint64), 10**12, 7, 3).tolist() == GOLDEN_LARGE


def test_permutation_looks_random() -> None:
    """Chi-square of (position block, value block) counts over 40 keys, and no fixed pattern between keys."""
    n, blocks = 4000, 10
    table = np.zeros((blocks, blocks))
    for seed in range(40):
        image = permute(np.arange(n, dtype=np.uint64), n, seed, 0).astype(np.int64)
        np.add.at(table, (np.arange(n) * blocks // n, image * blocks // n), 1)
    expected = 40 * n / blocks**2
    chi2 = float(((table - expected) ** 2 / expected).sum())
    # Rows and columns are fixed by the permutation: 81 degrees of freedom, mean 81, std sqrt(162) = 12.7;
    # drawing without replacement lowers it a little. Six standard deviations either way.
    assert 81 - 6 * 12.7 < chi2 < 81 + 6 * 12.7


def test_windows_overlap_by_one_and_labels_are_the_next_ids(shards: ShardSet) -> None:
    loader = Loader(shards, 5, seed=3)
    assert loader.n_samples == 997
    inputs, labels = loader.batch(0, 997)
    assert inputs.shape == labels.shape == (997, 5)
    assert inputs.dtype == labels.dtype == np.int64
    check_exactly_once(inputs, labels, n_samples=997, seq_len=5)
    assert not np.array_equal(inputs, np.sort(inputs, axis=0))  # and shuffled


def check_exactly_once(inputs: Any, labels: Any, n_samples: int, seq_len: int) -> None:
    """Every window once, labels one ahead: what one epoch must be over ids 0, 1, 2, …"""
    assert np.array_equal(labels, inputs + 1)
    assert np.array_equal(np.sort(labels.ravel()), np.arange(1, n_samples * seq_len + 1))


def epochs_differ(loader: Loader) -> None:
    first, second = (loader.sample_ids(epoch, np.arange(loader.n_samples)) for epoch in (0, 1))
    assert not np.array_equal(first, second)


def any_split_reads_the_same(shards: ShardSet) -> None:
    """1, 2 or 4 readers with their own loaders, and a reader that starts in the middle."""
    whole = Loader(shards, 5, seed=3).batch(990, 16)[0]  # crosses into the second epoch
    for n_readers in (2, 4):
        share = 16 // n_readers
        parts = [Loader(shards, 5, seed=3).batch(990 + rank * share, share)[0] for rank in range(n_readers)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_have_their_own_order(shards: ShardSet) -> None:
    epochs_differ(Loader(shards, 5, seed=3))
    assert Loader(shards, 5, seed=3).sample_id(0, 0) != Loader(shards, 5, seed=4).sample_id(0, 0)


def check_later_epoch(inputs: Any, offset: int, n_tokens: int, seq_len: int) -> None:
    """Windows `seq_len` apart from `offset` on, each once; what would pass the corpus' end is moved back."""
    starts = np.sort(inputs[:, 0])
    expected = np.minimum(offset + seq_len * np.arange(len(inputs)), n_tokens - seq_len - 1)
    assert np.array_equal(starts, expected)


def test_later_epochs_cut_the_corpus_elsewhere(shards: ShardSet) -> None:
    loader = Loader(shards, 5, seed=3)
    offsets = [loader.offset(epoch) for epoch in range(40)]
    assert offsets[0] == 0 and set(offsets) == set(range(5))
    for epoch in range(1, 6):
        inputs, labels = loader.batch(epoch * 997, 997)
        assert np.array_equal(labels, inputs + 1)
        check_later_epoch(inputs, offsets[epoch], shards.n_tokens, 5)
    with pytest.raises(AssertionError):  # the first epoch's cuts are not those of an epoch with an offset
        check_later_epoch(loader.batch(0, 997)[0], max(offsets), shards.n_tokens, 5)
    assert {Loader(shards, 5, seed=seed).offset(1) for seed in range(40)} == set(range(5))


def test_any_number_of_readers_sees_the_same_order(shards: ShardSet) -> None:
    any_split_reads_the_same(shards)


def test_planted_bugs_are_caught(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above fail on an offset of one, an epoch left out of the key, and an order per reader."""
    with monkeypatch.context() as patch:
        read = ShardSet.read
        patch.setattr(ShardSet, "read", lambda self, start, n: read(self, start + 1, n))
        with pytest.raises(AssertionError):
            check_exactly_once(*Loader(shards, 5).batch(0, 997), n_samples=997, seq_len=5)
    with monkeypatch.context() as patch:
        keys = loader_module._round_keys
        patch.setattr(loader_module, "_round_keys", lambda seed, epoch: keys(seed, 0))
        with pytest.raises(AssertionError):
            epochs_differ(Loader(shards, 5))
    with monkeypatch.context() as patch:
        keys = loader_module._round_keys
        calls = iter(range(10**6))
        patch.setattr(loader_module, "_round_keys", lambda seed, epoch: keys(seed + next(calls), epoch))
        with pytest.raises(AssertionError):
            any_split_reads_the_same(shards)


def test_no_shuffle_keeps_the_text_order(shards: ShardSet) -> None:
    inputs, _ = Loader(shards, 5, shuffle=False).batch(0, 4)
    assert inputs.ravel().tolist() == list(range(20))


def test_one_window_is_enough_and_fewer_is_an_error(tmp_path: Path) -> None:
    small = shard_set(tmp_path / "small", 9)
    inputs, labels = Loader(small, 8).batch(0, 3)  # three epochs of one sample
    assert inputs.tolist() == [list(range(8))] * 3
    assert labels.tolist() == [list(range(1, 9))] * 3
    with pytest.raises(DataError, match=r"has 9 tokens, fewer than one window of 9 \+ 1"):
        Loader(small, 9)


def test_bad_arguments(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="seq_len = 0"):
        Loader(shards, 0)
    with pytest.raises(ConfigError, match="no batch of 0 samples"):
        Loader(shards, 5).batch(0, 0)
    with pytest.raises(ConfigError, match="position -1"):
        Loader(shards, 5).batch(-1, 4)
