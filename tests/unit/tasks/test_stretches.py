"""Stretches of a passage: the likeliest, and that of highest expected F1, against every stretch in turn."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.errors import ConfigError
from wafergpt.tasks import stretches
from wafergpt.tasks.qa import QuestionAnswering
from wafergpt.tasks.registry import make
from wafergpt.tasks.stretches import Choose, expected_f1, likeliest


def draw(n: int, seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).dirichlet(np.full(n, 0.3), 2)
    return np.asarray(p)


def every(n: int, longest: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n) for j in range(i, min(n, i + longest))]


def f1(a: tuple[int, int], b: tuple[int, int]) -> float:
    ours, theirs = set(range(a[0], a[1] + 1)), set(range(b[0], b[1] + 1))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longest", [1, 3, 30])
def test_against_every_stretch(seed: int, longest: int) -> None:
    p, all_of = draw(12, seed), every(12, longest)
    weight = {pair: float(p[0, pair[0]] * p[1, pair[1]]) for pair in all_of}
    found = likeliest(p, [(0, 12)], longest)
    assert weight[found.first, found.last] == max(weight.values()) == pytest.approx(found.confidence)
    total = sum(weight.values())
    gain = {pair: sum(w * f1(pair, other) for other, w in weight.items()) / total for pair in all_of}
    found = expected_f1(p, [(0, 12)], longest)
    assert gain[found.first, found.last] == pytest.approx(max(gain.values()))
    assert found.confidence == pytest.approx(max(gain.values()))


def test_an_unsure_model_says_more() -> None:
    """Three answers as likely as each other: all of them, not one."""
    p = np.array([[1 / 3, 1 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3, 0]])
    sure, unsure = likeliest(p, [(0, 4)], 9), expected_f1(p, [(0, 4)], 9)
    assert sure.last - sure.first < unsure.last - unsure.first and (unsure.first, unsure.last) == (0, 2)


def test_pieces_are_places_in_the_passage() -> None:
    p = np.full((2, 8), 1e-3)
    p[0, 5], p[1, 6] = 0.9, 0.9  # the second piece's second and third position
    for choose in (likeliest, expected_f1):
        found = choose(p, [(0, 4), (2, 6)], 9)
        assert (found.first, found.last) == (3, 4)


def test_rare_stretches_are_left_out_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    p = draw(12, 3)
    monkeypatch.setattr(stretches, "N_LIKELY", 1)
    one, best = expected_f1(p, [(0, 12)], 30), likeliest(p, [(0, 12)], 30)
    assert (one.first, one.last, one.confidence) == (best.first, best.last, 1.0)


def test_the_setting_is_known_and_checked() -> None:
    assert make("qa", {"choose": "expected_f1"}) == QuestionAnswering(choose=Choose.EXPECTED_F1)
    with pytest.raises(ConfigError, match="likeliest, expected_f1"):
        make("qa", {"choose": "f1"})
    with pytest.raises(ConfigError, match="needs method=extractive"):
        make("qa", {"choose": "expected_f1", "method": "generative"})
