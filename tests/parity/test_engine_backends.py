"""One engine over every backend: the same greedy tokens; on the native one, the same bits in any company."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from native_lab import config, needs_library, stored_model
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.torch_compiled import TorchCompiled
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Generate,
    Generated,
    Hidden,
    HiddenStates,
    Request,
    SamplingConfig,
    Score,
    Scored,
    Terms,
)
from wafergpt.inference.scheduler import Limits
from wafergpt.model.gpt import GPT

SHAPE = config()
STORED = stored_model(SHAPE)


def torch_engine(**options: Any) -> Engine:
    return Engine(TorchEager(GPT.from_stored(STORED), **options))


def compiled_engine(**options: Any) -> Engine:
    return Engine(TorchCompiled(GPT.from_stored(STORED), **options))


def native_engine(precision: str = "f32", limits: Limits | None = None, **options: Any) -> Engine:
    return Engine(NativeCPU.from_stored(STORED, precision=precision, n_threads=1, **options), limits=limits)


def mixed_requests(n: int, seed: int = 0) -> list[Request]:
    """Prompts of all lengths, every way to sample, some shared beginnings, some scores and hidden states."""
    random = np.random.default_rng(seed)
    shared = random.integers(0, SHAPE.vocab_size, 50).tolist()
    requests: list[Request] = []
    for number in range(n):
        fresh = random.integers(0, SHAPE.vocab_size, int(random.integers(1, 40))).tolist()
        salted = number % 3 == 0
        ids = tuple([*shared[: int(random.integers(33, 50))], *fresh[:20]] if salted else fresh)
        terms = Terms(cache_salt=b"salt" if salted else None, priority=int(random.integers(-1, 2)))
        if number % 20 == 7:
            requests.append(Score(token_ids=(*ids, 1), n_context=int(random.integers(1, len(ids) + 1))))
        elif number % 20 == 13:
            requests.append(Hidden(token_ids=ids, last_only=bool(random.integers(2)), terms=terms))
        else:
            sampling = SamplingConfig(
                temperature=float(random.choice([0.0, 0.7, 1.0, 1.5])),
                top_k=(None, 5, 40)[random.integers(3)],
                top_p=float(random.choice([1.0, 0.9])),
                frequency_penalty=float(random.choice([0.0, 0.5])),
                seed=int(random.integers(2**60)),
                max_new_tokens=int(random.integers(1, 9)),
            )
            n_samples = 3 if number % 10 == 4 else 1
            requests.append(Generate(prompt_ids=ids, sampling=sampling, n=n_samples, n_top=1, terms=terms))
    return requests


def same(a: Any, b: Any) -> bool:
    """To the last bit: log-probabilities and hidden states too."""
    if isinstance(a, HiddenStates) and isinstance(b, HiddenStates):
        return np.array_equal(a.states, b.states)
    return bool(a == b)


@needs_library
def test_the_same_greedy_tokens_on_every_backend() -> None:
    config_ = SamplingConfig(temperature=0, max_new_tokens=24)
    random = np.random.default_rng(1)
    requests: list[Request] = [
        Generate(prompt_ids=tuple(random.integers(0, SHAPE.vocab_size, n).tolist()), sampling=config_)
        for n in (1, 3, 31, 32, 33, 55)
    ]
    found = [engine.run(requests) for engine in (torch_engine(), native_engine(), compiled_engine())]
    assert found[0] == found[1] == found[2] and all(isinstance(result, Generated) for result in found[0])


@needs_library
def test_scores_and_hidden_states_of_both() -> None:
    """float32 sums of some hundred terms in another order: 2e-5 of the largest logit, about 5 here."""
    ids = tuple(np.random.default_rng(2).integers(0, SHAPE.vocab_size, 70).tolist())
    requests: list[Request] = [Score(token_ids=ids, n_context=5), Hidden(token_ids=ids, last_only=False)]
    (score, hidden), (native_score, native_hidden) = (
        e.run(requests) for e in (torch_engine(), native_engine())
    )
    assert isinstance(score, Scored) and isinstance(native_score, Scored)
    for a, b in zip(score.scores, native_score.scores, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)
    with torch.no_grad():
        logits = GPT.from_stored(STORED)(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    expected = sum(logits[i - 1, ids[i]].item() for i in range(5, 70))
    assert math.isclose(score.total_log_probability, expected, abs_tol=1e-3)
    assert isinstance(hidden, HiddenStates) and isinstance(native_hidden, HiddenStates)
    np.testing.assert_allclose(hidden.states, native_hidden.states, atol=1e-4)


@needs_library
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_bits_do_not_depend_on_the_company(precision: str) -> None:
    """Alone, each in a fresh engine's terms; then all at once, in little memory and small steps."""
    requests = mixed_requests(60)
    lonely = native_engine(precision)
    alone = [lonely.run([request])[0] for request in requests]
    crowded = native_engine(precision, Limits(step_tokens=40, max_sequences=17), n_pages=14)
    assert all(same(a, b) for a, b in zip(alone, crowded.run(requests), strict=True))


@needs_library
@pytest.mark.parametrize(
    "precision", ["int8", *(pytest.param(name, marks=pytest.mark.long) for name in ("f32", "bf16", "int4"))]
)
def test_five_thousand_requests_alone_and_among_sixteen(precision: str) -> None:
    requests = mixed_requests(5000, seed=3)
    lonely = native_engine(precision)
    alone = [lonely.run([request])[0] for request in requests]
    crowded = native_engine(precision, Limits(step_tokens=64, max_sequences=17), n_pages=40)
    for start in range(0, len(requests), 17):
        batch = requests[start : start + 17]
        found = crowded.run(batch)
        assert all(same(a, b) for a, b in zip(alone[start : start + 17], found, strict=True)), start
