"""The same text evaluates to the same loss from files and from a prepared folder."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from wafergpt.config import from_dict
from wafergpt.data.shards import Manifest, ShardWriter
from wafergpt.errors import ConfigError, DataError
from wafergpt.evaluation.held_out import HeldOut, baseline_rows, evaluate_text
from wafergpt.evaluation.ngram import KneserNey
from wafergpt.evaluation.report import EvaluationReport, Kind
from wafergpt.tokenizer.bpe import Tokenizer

TEXT = "the wafer holds a river of small grey cores and each one sends its word to the next"


def document(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(TEXT.split(), size=60)) + " – ende.\n"


TRAIN, HELD_OUT = [document(i) for i in range(40)], [document(i) for i in range(100, 104)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TRAIN, 300)


def write_shards(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    texts = list(texts)
    writer = ShardWriter(folder, tokenizer.vocab_size, shard_tokens=1000)
    for row in tokenizer.encode_batch(texts):
        writer.append(np.array([*row, tokenizer.end_of_text_id], np.uint16))
    shards = writer.finish()
    Manifest(
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        tokenizer_sha256=tokenizer.sha256,
        n_tokens=sum(shard.n_tokens for shard in shards),
        n_documents=len(texts),
        n_text_bytes=sum(len(text.encode()) for text in texts),
        shards=shards,
    ).save(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "train", TRAIN, tokenizer)
    write_shards(folder / "held_out", HELD_OUT, tokenizer)
    return folder


class UnigramScorer:
    max_seq_len = 16

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        ids = np.concatenate([[*row, tokenizer.end_of_text_id] for row in tokenizer.encode_batch(TRAIN)])
        self.model = KneserNey.train(
            ids, order=1, vocab_size=self.vocab_size, end_of_text_id=tokenizer.end_of_text_id
        )

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[np.ndarray]:
        return [
            -self.model.score(np.array(window[n:])).astype(np.float32)
            for window, n in zip(windows, n_context, strict=True)
        ]


def test_prepared_folder_with_baselines(prepared: Path, tokenizer: Tokenizer) -> None:
    held_out = HeldOut.open([prepared], tokenizer)
    report = evaluate_text(UnigramScorer(tokenizer), tokenizer, held_out, name="us", with_baselines=True)
    model, alone, *_, unigram, trigram, fivegram = report.rows
    assert len(report.rows) == 7
    assert (model.name, model.kind) == ("us", Kind.MODEL)
    # The model is the unigram of the baselines, so the two ways of counting must meet; float32 rows round
    # once, relative 2^-24.
    assert model.bits_per_byte == pytest.approx(unigram.bits_per_byte, rel=2**-23)
    assert trigram.bits_per_byte < unigram.bits_per_byte > fivegram.bits_per_byte
    text = "".join(HELD_OUT).encode()
    assert alone.bits_per_byte == 8 * len(gzip.compress(text, 9)) / len(text)
    assert report.n_text_bytes == len(text)
    assert from_dict(EvaluationReport, report.to_dict()) == report


def test_text_files_give_the_prepared_folders_loss(
    prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    paths = []
    for i, text in enumerate(HELD_OUT):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    scorer = UnigramScorer(tokenizer)
    from_files = evaluate_text(scorer, tokenizer, HeldOut.open(paths, tokenizer), with_baselines=True)
    from_shards = evaluate_text(scorer, tokenizer, HeldOut.open([prepared], tokenizer))
    assert from_files.rows[0].bits_per_byte == from_shards.rows[0].bits_per_byte
    assert from_files.n_tokens == from_shards.n_tokens
    assert [row.name for row in from_files.rows] == ["model", "gzip -9"]  # no training text, no n-grams


def test_training_tokens_can_be_limited(prepared: Path, tokenizer: Tokenizer) -> None:
    held_out = HeldOut.open([prepared], tokenizer)
    rows = baseline_rows(held_out, tokenizer, max_train_tokens=500)
    assert "500 training tokens" in rows[-1].details


def test_what_cannot_be_evaluated_is_refused(prepared: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one text file"):
        HeldOut.open([], tokenizer)
    with pytest.raises(DataError, match="another tokenizer"):
        HeldOut.open([prepared], Tokenizer.train(TRAIN, 290))
    write_shards(tmp_path / "train", TRAIN, tokenizer)
    with pytest.raises(DataError, match="without held-out text"):
        HeldOut.open([tmp_path], tokenizer)
    with pytest.raises(DataError):
        HeldOut.open([tmp_path / "missing.txt"], tokenizer)
