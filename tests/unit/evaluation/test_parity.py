"""The battery is fixed, comparisons give what a hand calculation gives, bounds catch what they should."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from wafergpt.errors import ConfigError, NonFiniteError
from wafergpt.evaluation.parity import TEXTS, Answers, Bounds, Prompt, answer, battery, compare
from wafergpt.tokenizer.bpe import Tokenizer


class Table:
    """A bigram model: the row of the last token."""

    name = "table"
    normalized = False

    def __init__(self, rows: np.ndarray, max_seq_len: int = 100) -> None:
        self.rows = rows.astype(np.float32)
        self.vocab_size = rows.shape[1]
        self.max_seq_len = max_seq_len

    def logits(self, token_ids: Sequence[int], n_last: int) -> np.ndarray:
        return self.rows[list(token_ids)[-n_last:]]


def said(rows: object, normalized: bool = False) -> Answers:
    return Answers(name="x", normalized=normalized, rows=(np.array(rows, np.float32),))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the battery of the model, the model"] * 4, 260)


def test_the_battery_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    prompts = battery(tokenizer, 300, 50)
    assert prompts == battery(tokenizer, 300, 50)
    assert (
        len(prompts) == len(TEXTS) + 5
    )  # end of text, last id, two scattered, the one that fills the window
    assert all(1 <= p.n_last <= len(p.token_ids) <= 50 for p in prompts)
    assert len(prompts[-1].token_ids) == 50 and prompts[-1].n_last == 16
    ids = [i for p in prompts for i in p.token_ids]
    assert min(ids) >= 0 and max(ids) == 299 and tokenizer.end_of_text_id in ids


@pytest.mark.parametrize("vocab_size, max_seq_len", [(1, 1), (2, 3), (50257, 2048)])
def test_without_tokenizer_ids_are_scattered_over_the_vocabulary(vocab_size: int, max_seq_len: int) -> None:
    prompts = battery(None, vocab_size, max_seq_len)
    ids = np.array(prompts[-1].token_ids)
    assert len(ids) == max_seq_len and ids.min() >= 0 and ids.max() < vocab_size
    if vocab_size > 1000:  # 2048 even draws: mean within five standard errors of the middle
        assert abs(ids.mean() / vocab_size - 0.5) < 5 / math.sqrt(12 * 2048)


def test_a_tokenizer_larger_than_the_model_is_not_used(tokenizer: Tokenizer) -> None:
    assert battery(tokenizer, tokenizer.vocab_size - 1, 20) == battery(None, tokenizer.vocab_size - 1, 20)


def test_figures_of_a_hand_calculation() -> None:
    a, b = said([[0.0, math.log(3)]]), said([[math.log(3), 0.0]])  # (1/4, 3/4) and (3/4, 1/4)
    found = compare(a, b)
    assert (found.n_positions, found.compared, found.top1_agreement) == (1, "logits", 0.0)
    # float32 logits: 2^-24 of ln 3
    assert found.mean_kl == found.max_kl == pytest.approx(0.5 * math.log(3), rel=1e-6)
    assert found.max_logit_diff == found.largest_logit == pytest.approx(math.log(3), rel=1e-6)
    assert found.relative_logit_diff == 1.0
    assert found.logit_spread == pytest.approx(math.log(3) / 2, rel=1e-6)
    assert found.max_log_probability_diff == pytest.approx(math.log(3), rel=1e-6)


def test_a_constant_per_row_counts_for_logits_only() -> None:
    a, b = [[0.0, 1.0], [2.0, 5.0]], [[3.0, 4.0], [2.0, 5.0]]
    found = compare(said(a), said(b))
    assert found.max_logit_diff == 3 and found.max_log_probability_diff < 1e-12 and found.mean_kl < 1e-12
    normalized = compare(said(a), said(b, normalized=True))
    assert normalized.compared == "log-probabilities" and normalized.max_logit_diff < 1e-12


def test_answers_are_asked_prompt_by_prompt() -> None:
    table = Table(np.arange(12).reshape(4, 3).astype(float)[:, :3])
    got = answer(table, (Prompt(token_ids=(0, 2), n_last=1), Prompt(token_ids=(1,), n_last=1)))
    assert [row.tolist() for row in got.rows] == [[[6.0, 7.0, 8.0]], [[3.0, 4.0, 5.0]]]


def test_what_does_not_fit_is_refused() -> None:
    table = Table(np.zeros((3, 3)), max_seq_len=2)
    with pytest.raises(ConfigError, match="table reads at most 2 tokens, a prompt has 3"):
        answer(table, [Prompt(token_ids=(0, 0, 0), n_last=1)])
    with pytest.raises(ConfigError, match="table has 3 vocabulary entries, a prompt holds id 3"):
        answer(table, [Prompt(token_ids=(3,), n_last=1)])
    with pytest.raises(ConfigError, match="x has 2 vocabulary entries and x 3"):
        compare(said([[0, 0]]), said([[0, 0, 0]]))
    with pytest.raises(NonFiniteError, match="table gives a logit that is nan"):
        answer(Table(np.full((3, 3), np.nan)), [Prompt(token_ids=(0,), n_last=1)])


def test_bounds_name_what_is_missed() -> None:
    found = compare(said([[0.0, 1.0]]), said([[0.0, 1.001]]))
    assert (
        Bounds(reason="", relative_logit_diff=2e-3, max_log_probability_diff=2e-3, mean_kl=1e-6).misses(found)
        == []
    )
    missed = Bounds(reason="", relative_logit_diff=1e-4, max_log_probability_diff=1e-4, mean_kl=1e-8)
    assert len(missed.misses(found)) == 3
    assert "largest logit difference over largest logit 0.001 is over the bound" in missed.misses(found)[0]
    assert Bounds(reason="").misses(found) == []
