"""Measures against worked examples, and calibration on logits whose temperature is known."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.errors import ConfigError
from wafergpt.tasks import calibration, metrics


def test_accuracy_and_macro_f1() -> None:
    found, wanted = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    assert metrics.accuracy(found, wanted) == 0.5
    # a: 1 hit of 2 found, 1 wanted: 2/3; b: 1 of 1 and 3: 1/2; c: 0
    assert metrics.macro_f1(found, wanted) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.confusion(found, wanted, ["a", "b", "c"]).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_squad_normal_form() -> None:
    assert metrics.squad_words("The  Big, (old) an Apple!") == ["big", "old", "apple"]
    assert metrics.exact_match("the cat.", ["a dog", "A Cat"]) == 1.0
    assert metrics.word_f1("the big cat", ["cat", "big red cat"]) == pytest.approx(0.8)
    assert metrics.word_f1("", ["cat"]) == 0.0


def test_distinct_n() -> None:
    assert metrics.distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct_n(["a"], 2) == 0.0


def test_bleu_and_chrf_are_sacrebleus() -> None:
    pytest.importorskip("sacrebleu")
    same = metrics.bleu_and_chrf(["a b c d e"], ["a b c d e"])
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100)
    text = ["文件已经被保存到文件夹中"]
    assert metrics.has_chinese(text) and not metrics.has_chinese(["a 文"])
    assert metrics.bleu_and_chrf(text, text, chinese=True)["bleu"] == pytest.approx(100)


def test_nothing_to_score() -> None:
    with pytest.raises(ConfigError, match="nothing to score"):
        metrics.accuracy([], [])


def test_the_temperature_is_found() -> None:
    """Labels drawn from softmax(z), logits given as 3z: the least nats lie near temperature 3.

    The estimate's deviation for n = 20,000 is about T / sqrt(n x Fisher information of log T) < 0.05 here.
    """
    random = np.random.default_rng(3)
    z = random.normal(size=(20_000, 4)) * 2
    p = calibration.softmax(z)
    labels = (p.cumsum(1) < random.random((len(p), 1))).sum(1)
    temperature = calibration.fit_temperature(3 * z, labels)
    assert temperature == pytest.approx(3.0, abs=0.2)
    errors = []
    for t in (1.0, temperature):
        q = calibration.softmax(3 * z, t)
        bins = calibration.reliability(q.max(1), q.argmax(1) == labels)
        assert sum(one.n for one in bins) == len(labels)
        errors.append(calibration.expected_calibration_error(bins))
    # n draws leave about sqrt(bins / n) x 0.4 = 0.011 in the error of a calibrated classifier
    assert errors[0] > 0.1 and errors[1] < 0.02


def test_a_few_right_answers_do_not_make_certainty() -> None:
    """20 of 20 right: plain maximum likelihood would say 1; with n + 2 it stays near 1 - 1/22 x 1/2."""
    labels = np.arange(20) % 2
    logits = np.eye(2)[labels] * 3.0
    p = calibration.softmax(logits, calibration.fit_temperature(logits, labels)).max(1)
    assert p == pytest.approx(np.full(20, 1 - 1 / 22 / 2), abs=1e-6)


def test_bins_hold_their_upper_edge() -> None:
    bins = calibration.reliability(np.array([0.0, 0.5, 0.51, 1.0]), np.array([True, True, False, True]), 2)
    assert [(one.low, one.n, one.accuracy) for one in bins] == [(0.0, 2, 1.0), (0.5, 2, 0.5)]
    assert calibration.expected_calibration_error(bins) == pytest.approx(0.5 * 0.75 + 0.5 * 0.255)
