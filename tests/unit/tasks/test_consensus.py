"""The most agreed of several answers, by chrF as sacrebleu counts it."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.errors import ConfigError
from wafergpt.tasks.consensus import chrf_table, most_agreed

TEXTS = [
    "the cat sat on the mat",
    "the cat is on the mat",
    "a dog",
    "打开文件并选择单元格",
    "打开文件",
    "x",
    "",
]


def test_chrf_is_sacrebleus() -> None:
    from sacrebleu.metrics import CHRF

    theirs = CHRF()
    expected = [[theirs.sentence_score(a, [b]).score / 100 for b in TEXTS] for a in TEXTS]
    np.testing.assert_allclose(chrf_table(TEXTS), expected, atol=1e-12)  # sums of some 20 doubles below 1


def test_what_most_say_is_chosen() -> None:
    texts = ["a dog ran off", "the cat sat on the mat", "the cat is on the mat", "the cat sat on a mat"]
    best, agreed = most_agreed(texts)
    assert best in (1, 3) and agreed == pytest.approx(chrf_table(texts)[best].mean())
    assert agreed > chrf_table(texts)[0].mean()
    assert most_agreed(["a", "b", "b"])[0] == 1  # among equals the first


def test_one_text_is_chosen_and_none_refused() -> None:
    assert most_agreed(["only"]) == (0, 1.0)
    assert most_agreed(["", ""]) == (0, 0.0)
    with pytest.raises(ConfigError, match="no text"):
        most_agreed([])
