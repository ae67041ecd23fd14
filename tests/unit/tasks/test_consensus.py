"""The most agreed of several answers, by chrF as sacrebleu counts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel

from wafergpt.errors import ConfigError
from wafergpt.tasks.consensus import chrf_table, most_agreed
from wafergpt.tasks.pointing import Hinted
from wafergpt.tasks.registry import make
from wafergpt.tasks.task import Decoding
from wafergpt.tasks.translation import SAMPLED_AT, Hints, Translation

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
    assert best == 1 and agreed == pytest.approx(chrf_table(texts)[1].mean())
    assert most_agreed(["a", "b", "b"])[0] == 1  # among equals the first


def test_one_text_is_chosen_and_none_refused() -> None:
    assert most_agreed(["only"]) == (0, 1.0)
    assert most_agreed(["", ""]) == (0, 0.0)
    with pytest.raises(ConfigError, match="no text"):
        most_agreed([])


class Telling(RuleModel):
    """Says one text after the other, and keeps how it was asked."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._texts, self.asked = list(texts), list[tuple[Decoding, list[Any]]]()

    def write(self, prompts: Any, decoding: Decoding, guides: Any = ()) -> Any:
        self.asked.append((decoding, list(guides)))
        self._says = lambda prompt: self._texts[len(self.asked) - 1]
        return super().write(prompts, decoding)


RECORDS = [{"source": "red house"}]


def test_the_most_agreed_candidate_is_given() -> None:
    model = Telling("mason rouge", "la maison rouge", "maison rouge")
    asked = Decoding(seed=5, n_beams=2, frequency_penalty=0.5)
    (answer,) = Translation(candidates=3).answer(model, RECORDS, asked)
    assert answer.text == "la maison rouge"
    assert answer.confidence == pytest.approx(chrf_table(model._texts)[1].mean())
    decodings = [decoding for decoding, _ in model.asked]
    assert decodings[0] == asked, "the first is as asked for"
    assert [(d.temperature, d.seed, d.n_beams) for d in decodings[1:]] == [
        (SAMPLED_AT, 6, 1),
        (SAMPLED_AT, 7, 1),
    ]
    assert all(d.frequency_penalty == 0.5 for d in decodings)
    warm = Telling("a", "b")
    Translation(candidates=2).answer(warm, RECORDS, Decoding(temperature=1.5))
    assert [(d.temperature, d.seed) for d, _ in warm.asked] == [(1.5, None), (1.5, 1)]


def test_all_candidates_have_the_same_hints() -> None:
    model = Telling("a", "b")
    Translation(hints=Hints.SOURCE, candidates=2).answer(model, RECORDS, Decoding())
    (first,), (second,) = (guides for _, guides in model.asked)
    assert isinstance(first, Hinted) and first is second


@pytest.mark.parametrize("n", [0, 65])
def test_the_number_of_candidates_is_checked(n: int) -> None:
    with pytest.raises(ConfigError, match="candidates"):
        make("translation", {"candidates": n})
