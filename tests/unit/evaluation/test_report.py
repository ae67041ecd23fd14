"""Baselines' bits per byte, and the report that sets them beside a model."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest

from wafergpt.config import from_dict
from wafergpt.errors import DataError
from wafergpt.evaluation.baselines import compressor_rows, ngram_rows
from wafergpt.evaluation.ngram import KneserNey
from wafergpt.evaluation.perplexity import HeldOutLoss
from wafergpt.evaluation.report import EvaluationReport, Kind, Row, model_row

TRAIN = " ".join(f"line {i * i % 97} of the training text" for i in range(300)).encode()
HELD_OUT = " ".join(f"line {i * i % 97} of the training text" for i in range(300, 340)).encode()


def test_compressors_alone_and_after_the_training_text() -> None:
    alone, gzip_after, xz_after = compressor_rows(HELD_OUT, TRAIN)
    n = len(HELD_OUT)
    assert alone.bits_per_byte == 8 * len(gzip.compress(HELD_OUT, 9)) / n
    grown = len(gzip.compress(TRAIN + HELD_OUT, 9)) - len(gzip.compress(TRAIN, 9))
    assert gzip_after.bits_per_byte == 8 * grown / n
    preset = 9 | lzma.PRESET_EXTREME
    grown = len(lzma.compress(TRAIN + HELD_OUT, preset=preset)) - len(lzma.compress(TRAIN, preset=preset))
    assert xz_after.bits_per_byte == 8 * grown / n
    assert max(gzip_after.bits_per_byte, xz_after.bits_per_byte) < alone.bits_per_byte
    assert alone.perplexity is None
    assert [row.name for row in compressor_rows(HELD_OUT)] == ["gzip -9"]


def test_random_bytes_take_eight_bits() -> None:
    (row,) = compressor_rows(np.random.default_rng(0).bytes(100_000))
    assert 8 <= row.bits_per_byte < 8.01  # deflate's stored blocks cost 5 bytes per 64 KiB, gzip's frame 18
    with pytest.raises(DataError):
        compressor_rows(b"")


def test_ngram_rows_count_every_token() -> None:
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 9, 500), rng.integers(0, 9, 80)
    rows = ngram_rows(train, held_out, n_text_bytes=160, vocab_size=9, end_of_text_id=0, orders=(1, 2))
    for order, row in zip((1, 2), rows, strict=True):
        nats = KneserNey.train(train, order=order, vocab_size=9, end_of_text_id=0).score(held_out)
        assert row.name == f"{order}-gram Kneser-Ney"
        assert row.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / 160)
        assert row.nats_per_token == pytest.approx(nats.mean())


def report(model_bits_per_byte: float = 1.0) -> EvaluationReport:
    total_nats = model_bits_per_byte * math.log(2) * 1000
    loss = HeldOutLoss(
        n_tokens=250, n_text_bytes=1000, total_nats=total_nats, seq_len=64, stride=32, duration_s=2.5
    )
    rows = (
        Row(name="gzip -9", kind=Kind.COMPRESSOR, bits_per_byte=2.5, duration_s=0.1),
        Row(name="5-gram", kind=Kind.NGRAM, bits_per_byte=1.2, nats_per_token=3.3, duration_s=0.9),
        model_row("wafergpt", loss),
    )
    return EvaluationReport(corpus="a Bible", n_tokens=250, n_text_bytes=1000, rows=rows)


def test_report_reads_back_and_saves(tmp_path: Path) -> None:
    original = report()
    assert from_dict(EvaluationReport, json.loads(json.dumps(original.to_dict()))) == original
    as_json, as_markdown = original.save(tmp_path)
    data = json.loads(as_json.read_text())
    assert data["rows"][1]["perplexity"] == pytest.approx(math.exp(3.3))
    assert data["model_beats_baselines"] is True
    assert as_markdown.read_text() == original.to_markdown()


def test_markdown_lists_the_best_first_and_says_how_it_counted() -> None:
    lines = report().to_markdown().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["**wafergpt**", "5-gram", "gzip -9"]
    assert "1.0000" in lines[2] and "at least 33 tokens" in lines[2]
    assert "end-of-text" in lines[-1] and "1,000 bytes" in lines[-1]


def test_verdict() -> None:
    assert report(1.19).model_beats_baselines is True
    assert report(1.21).model_beats_baselines is False
    best = report().best_baseline
    assert best is not None and best.name == "5-gram"
    empty = EvaluationReport(corpus="x", n_tokens=1, n_text_bytes=1, rows=report().rows[2:])
    assert empty.model_beats_baselines is None and empty.best_baseline is None
