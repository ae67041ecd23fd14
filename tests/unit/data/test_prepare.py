"""Preparing a corpus: the split, the shards, and that neither depends on workers or on how text arrives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wafergpt.data.config import HeldOutConfig, HeldOutRule, PrepareConfig
from wafergpt.data.corpus import Piece
from wafergpt.data.prepare import prepare, split
from wafergpt.data.shards import ShardSet
from wafergpt.errors import ConfigError, DataError, StorageError
from wafergpt.tokenizer.bpe import Tokenizer

BLOCKS = HeldOutConfig(rule=HeldOutRule.BLOCKS, every=3, block_chars=10)


def corpus(folder: Path, n_documents: int = 12) -> Path:
    path = folder / "corpus.jsonl"
    texts = [f"The {i}. king of the land saw {'many ' * (i + 3)}days and nights." for i in range(n_documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def config(folder: Path, **changes: object) -> PrepareConfig:
    base = PrepareConfig(
        sources=(str(corpus(folder)),), out=folder / "data", tokenizer="train:280", held_out=BLOCKS, workers=1
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_shards_hold_the_text_of_their_side_and_nothing_else(tmp_path: Path) -> None:
    result = prepare(config(tmp_path))
    tokenizer = Tokenizer.load(result.folder)
    held_out = ShardSet.open(result.folder / "held_out")
    lines = (result.folder / "held_out" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    ids = held_out.read(0, held_out.n_tokens)
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text_id) + 1)
    assert [tokenizer.decode(piece[:-1]) for piece in pieces[:-1]] == documents
    assert all(len(text) <= BLOCKS.block_chars for text in documents)
    train = ShardSet.open(result.folder)
    whole = "".join(json.loads(line)["text"] for line in corpus(tmp_path).read_text().splitlines())
    assert result.n_train_bytes + result.n_held_out_bytes == len(whole.encode())
    assert result.n_train_tokens == train.n_tokens
    assert held_out.n_text_bytes == sum(len(text.encode()) for text in documents)


def test_workers_do_not_change_a_bit(tmp_path: Path) -> None:
    one = prepare(config(tmp_path))
    two = prepare(config(tmp_path, out=tmp_path / "two", workers=2))
    for side in ("train", "held_out"):
        first, second = ShardSet.open(one.folder / side), ShardSet.open(two.folder / side)
        assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("cut", [1, 3, 7, 10, 11, 1000])
def test_the_split_does_not_depend_on_how_the_text_arrives(cut: int) -> None:
    texts = ["abcdefghijklmnopqrstuvwxyz" * 3, "0123456789", "", "ABCDEFGHIJKLMNO"]

    def sides(cut: int) -> list[tuple[str, bool]]:
        pieces = []
        for text in texts:
            parts = [text[i : i + cut] for i in range(0, len(text), cut)] or [""]
            pieces += [
                Piece(text=t, ends_document=i == len(parts) - 1, origin="x") for i, t in enumerate(parts)
            ]
        documents, text = [], ""
        for part in split(pieces, BLOCKS):
            text += part.piece.text
            if part.piece.ends_document:
                documents.append((text, part.held_out))
                text = ""
        assert text == "", "the last piece ends its document"
        return documents

    assert sides(cut) == sides(10_000)
    assert "".join(text for text, _ in sides(cut)) == "".join(texts)
    held_out = [text for text, out in sides(cut) if out]
    assert held_out[0] == "uvwxyzabcd", "the third block of ten characters"


def test_every_nth_document_is_held_out(tmp_path: Path) -> None:
    rule = HeldOutConfig(rule=HeldOutRule.DOCUMENTS, every=4)
    result = prepare(config(tmp_path, held_out=rule))
    assert ShardSet.open(result.folder / "held_out").manifest.n_documents == 3
    assert ShardSet.open(result.folder).manifest.n_documents == 9


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good words " * 100 + b"\xff")
    with pytest.raises(DataError, match="byte 1100"):
        prepare(config(tmp_path, sources=(str(bad),)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "corpus.jsonl"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").touch()
    with pytest.raises(ConfigError, match="exists already"):
        prepare(config(tmp_path))
    assert (tmp_path / "data" / "mine").exists()


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wafergpt.data.prepare.ShardWriter.append", full)
    with pytest.raises(StorageError, match="No space left"):
        prepare(config(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", HeldOutConfig()),
        ("documents:7", HeldOutConfig(rule=HeldOutRule.DOCUMENTS, every=7)),
        ("blocks:20:4000", HeldOutConfig(rule=HeldOutRule.BLOCKS, every=20, block_chars=4000)),
    ],
)
def test_the_held_out_option_is_parsed(text: str, expected: HeldOutConfig) -> None:
    assert HeldOutConfig.parse(text) == expected


@pytest.mark.parametrize("text", ["", "every:2", "blocks:20", "documents:-1", "documents:1", "none:3"])
def test_a_bad_held_out_option_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        HeldOutConfig.parse(text)


@pytest.mark.parametrize("tokenizer", ["train:", "train:abc", "train:10", "nowhere.json"])
def test_a_bad_tokenizer_is_refused(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises((ConfigError, DataError)):
        prepare(config(tmp_path, tokenizer=tokenizer))
