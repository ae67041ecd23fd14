"""A guide changes the logits of one request, whether it writes, searches or scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from inference_lab import HashBackend, row_after
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import Generate, Generated, Score, Scored
from wafergpt.inference.sampling import SamplingConfig

V = 50


def engine() -> Engine:
    return Engine(HashBackend(vocab_size=V))


@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_guide_leads_its_own_request_alone(n_beams: int) -> None:
    def counting(new_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(V) == len(new_ids) + 4, np.float32(1e3), logits)

    config = SamplingConfig(temperature=0, max_new_tokens=4)
    guided, plain = engine().run(
        [
            Generate(prompt_ids=(1,), sampling=config, guide=counting, n_beams=n_beams),
            Generate(prompt_ids=(2,), sampling=config),
        ]
    )
    assert isinstance(guided, Generated) and guided.samples[0].token_ids == (4, 5, 6, 7)
    ids = [2]
    for _ in range(4):
        ids.append(int(row_after(ids, V).argmax()))
    assert isinstance(plain, Generated) and list(plain.samples[0].token_ids) == ids[1:]


def test_log_probabilities_are_by_the_guide() -> None:
    """Of what is scored and of what is written; it is told the tokens after the given ones."""
    ids = tuple(np.random.default_rng(0).integers(0, V, 12).tolist())

    def raised(new_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return logits + np.float32(3) * (np.arange(V) == len(new_ids)).astype(np.float32)

    def by_hand(before: Sequence[int], n: int) -> np.ndarray:
        row = row_after(before, V).astype(np.float64) + 3.0 * (np.arange(V) == n)
        return np.asarray(row - row.max() - np.log(np.exp(row - row.max()).sum()))

    config = SamplingConfig(temperature=0, max_new_tokens=3)
    scored, written = engine().run(
        [
            Score(token_ids=ids, n_context=8, n_top=1, guide=raised),
            Generate(prompt_ids=(7,), sampling=config, guide=raised, n_top=0),
        ]
    )
    assert isinstance(scored, Scored) and len(scored.scores) == 4
    for n, score in enumerate(scored.scores):
        row = by_hand(ids[: 8 + n], n)
        assert score.log_probability == pytest.approx(row[ids[8 + n]], abs=1e-5)
        assert score.top[0][0] == int(row.argmax())
    assert isinstance(written, Generated)
    (sample,) = written.samples
    for n, (token_id, score) in enumerate(zip(sample.token_ids, sample.scores, strict=True)):
        row = by_hand((7, *sample.token_ids[:n]), n)
        assert token_id == int(row.argmax()) and score.log_probability == pytest.approx(row.max(), abs=1e-5)
