"""What a question gains by a passage, counted by hand from a model whose nats are a rule of its text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from task_lab import RuleModel

from wafergpt.errors import ConfigError
from wafergpt.tasks.chat import Chat
from wafergpt.tasks.ranking import N_READ, Ranker
from wafergpt.tasks.task import Ids


class PerLetter(RuleModel):
    """Each byte costs 1 nat, an x 3; after a passage with `!` half as much."""

    def log_probabilities(self, rows: Sequence[tuple[Ids, int]]) -> list[list[float]]:
        self.rows = list(rows)
        found = []
        for ids, n_given in rows:
            factor = 0.5 if "!" in self.tokenizer.decode(ids[1:n_given]) else 1.0
            found.append([-factor * (3.0 if i == ord("x") else 1.0) for i in ids[n_given:]])
        return found


def test_both_parts_by_hand() -> None:
    passages = ["max tax, max!", "min"]
    ranker = Ranker(Chat(), PerLetter(window=400), passages)
    gains = ranker.gains("tax min", passages)
    nats = len("\nUser: tax min") + 2  # an x costs 2 more
    np.testing.assert_allclose(gains.asked, [nats / 2, 0.0])
    # "tax" costs 5 nats, "min" 3; two words were asked for
    expected = [math.log1p(math.exp(5) / 2), math.log1p(math.exp(3) / 2)]
    np.testing.assert_allclose(gains.shared, expected)
    np.testing.assert_allclose(gains.total, gains.asked + gains.shared)
    assert ranker.gains("nothing of it", passages).shared.tolist() == [0, 0]


def test_a_word_counts_once_and_by_its_first_letters() -> None:
    passages = ["insert xinsert inserted", "x"]
    ranker = Ranker(Chat(), PerLetter(window=400), passages)
    once = math.log1p(math.exp(6))
    np.testing.assert_allclose(ranker.gains("Inserting", passages).shared, [once, 0.0])


def test_the_beginning_of_a_long_passage_is_read_and_all_of_the_question() -> None:
    for window, n_read in ((400, N_READ), (100, 100 - len("|Assistant:") - len("\nUser: why"))):
        model = PerLetter(window=window)
        passages = ["a" * 300]
        Ranker(Chat(), model, passages).gains(" why ", passages)
        alone, after = model.rows
        assert model.tokenizer.decode(alone[0][alone[1] :]) == "\nUser: why"
        assert model.tokenizer.decode(after[0][after[1] :]) == "\nUser: why"
        assert after[1] - alone[1] == n_read and len(after[0]) <= window


def test_words_of_several_bytes_a_letter() -> None:
    ranker = Ranker(Chat(), PerLetter(window=400), ["für größe"])
    # "größe" has seven bytes, a nat each
    np.testing.assert_allclose(ranker.gains("Größe", ["für größe"]).shared, [math.log1p(math.exp(7))])


def test_what_cannot_be_ranked_is_refused() -> None:
    model = PerLetter(window=40)
    with pytest.raises(ConfigError, match="no passage"):
        Ranker(Chat(), model, [])
    with pytest.raises(ConfigError, match="must not be empty"):
        Ranker(Chat(), model, ["a", " "])
    with pytest.raises(ConfigError, match="a question has"):
        Ranker(Chat(), model, ["a"]).gains("q" * 60, ["a"])
    with pytest.raises(ConfigError, match="not among the passages"):
        Ranker(Chat(), model, ["a"]).gains("q", ["b"])
