"""A certificate survives its file, refuses a doctored one, and says what it found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from wafergpt.errors import DataError
from wafergpt.evaluation.certificate import (
    ArrayCheck,
    Certificate,
    Departure,
    Subject,
    certificate_path,
)
from wafergpt.evaluation.parity import Bounds, Comparison

FOUND = Comparison(
    n_positions=7,
    compared="logits",
    max_logit_diff=1e-6,
    largest_logit=3.0,
    logit_spread=1.0,
    max_log_probability_diff=1e-6,
    top1_agreement=1.0,
    mean_kl=1e-12,
    max_kl=2e-12,
)
BOUNDS = Bounds(reason="because", relative_logit_diff=2e-5)
CERTIFICATE = Certificate(
    source=Subject(name="a", format="native", sha256={"model.safetensors": "00"}),
    target=Subject(name="b.gguf", format="gguf", sha256={"b.gguf": "11"}),
    found=FOUND,
    bounds=BOUNDS,
    arrays=ArrayCheck(rounding="q8_0", n_exact=2, n_rounded=3),
    departures=(Departure(what="tanh for erf", found=FOUND, bounds=BOUNDS),),
    notes=("a buffer was dropped",),
    versions={"wafergpt": "0"},
)


def test_round_trip() -> None:
    assert Certificate.from_json(CERTIFICATE.to_json()) == CERTIFICATE
    data = json.loads(CERTIFICATE.to_json())
    assert data["same"] is True and data["found"]["relative_logit_diff"] == 1e-6 / 3.0


@pytest.mark.parametrize(
    "change",
    [
        {"same": False},
        {"problems": ["it differs"]},
        {"found": {**json.loads(CERTIFICATE.to_json())["found"], "max_logit_diff": 9.0}},
        {"extra": 1},
        {"versions": None},
    ],
)
def test_a_doctored_file_is_refused(change: dict) -> None:
    data = json.loads(CERTIFICATE.to_json()) | change
    with pytest.raises(DataError, match="not a parity certificate"):
        Certificate.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"same": true, "found": 3}'])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a parity certificate"):
        Certificate.from_json(text)


def test_lines() -> None:
    text = "\n".join(CERTIFICATE.lines())
    assert "compared 7 positions of a and b.gguf" in text
    assert "2 exact, 3 rounded to q8_0" in text and "tanh for erf: mean KL 1e-12" in text
    assert text.endswith("verdict: the same but for the rounding (because)")
    other = dataclasses.replace(CERTIFICATE, problems=("x is over", "y is over"), arrays=None)
    assert "NOT the same: x is over; y is over" in other.lines()[-1]


def test_where_it_lies(tmp_path: Path) -> None:
    assert certificate_path(tmp_path) == tmp_path / "parity.json"
    assert certificate_path(tmp_path / "m.gguf") == tmp_path / "m.gguf.parity.json"
