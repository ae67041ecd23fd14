"""Every number of a request is bounded, and the message names the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wafergpt.errors import ConfigError
from wafergpt.inference.request import Generate, Hidden, SamplingConfig, Score, Terms, TokenScore

GREEDY = SamplingConfig(temperature=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Generate, {"prompt_ids": ()}, "at least one token"),
        (Generate, {"n": 0}, "n = 0"),
        (Generate, {"n": 129}, "n = 129"),
        (Generate, {"n": 3, "best_of": 2}, "best_of = 2"),
        (Generate, {"best_of": 129}, "best_of = 129"),
        (Generate, {"n_beams": 65}, "n_beams = 65"),
        (Generate, {"n_beams": 2}, "set temperature to 0"),
        (Generate, {"n_beams": 2, "sampling": GREEDY, "best_of": 2}, "exclude each other"),
        (Generate, {"n_beams": 2, "sampling": GREEDY, "n": 3}, "n = 3 is more"),
        (Generate, {"n_beams": 2, "sampling": GREEDY, "n_top": 1}, "does not list"),
        (
            Generate,
            {"n_beams": 2, "sampling": SamplingConfig(temperature=0, stop=("x",))},
            "not stop texts",
        ),
        (Generate, {"length_penalty": 2.0}, "belongs to beam search"),
        (Generate, {"length_penalty": math.nan}, "length_penalty"),
        (Generate, {"n_choices": 0}, "n_choices = 0"),
        (Generate, {"n_top": 129}, "n_top = 129"),
        (Generate, {"n_prompt_top": -1}, "n_prompt_top = -1"),
        (Score, {"token_ids": (1,)}, "at least two"),
        (Score, {"n_context": 0}, r"n_context = 0 is not in 1\.\.1"),
        (Score, {"n_context": 2}, "n_context = 2"),
        (Score, {"n_top": 200}, "n_top = 200"),
        (Hidden, {"token_ids": ()}, "at least one"),
        (Terms, {"priority": 11}, "priority = 11"),
        (Terms, {"deadline_s": -1.0}, "deadline_s"),
        (Terms, {"deadline_s": math.inf}, "deadline_s"),
        (Terms, {"cache_salt": b""}, "cache_salt"),
        (Terms, {"cache_salt": b"x" * 257}, "cache_salt"),
    ],
)
def test_refusals(kind: Any, options: dict[str, Any], message: str) -> None:
    base = {Generate: {"prompt_ids": (1,)}, Terms: {}}.get(kind, {"token_ids": (1, 2)})
    with pytest.raises(ConfigError, match=message):
        kind(**base | options)


def test_what_greedy_would_have_said() -> None:
    assert TokenScore(token_id=3, log_probability=-1.0, top=((3, -1.0),)).is_likeliest
    assert not TokenScore(token_id=3, log_probability=-1.0, top=((2, -0.5), (3, -1.0))).is_likeliest
