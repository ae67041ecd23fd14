"""One engine over every backend: the same greedy tokens; on the native one, the same bits in any company."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from native_lab import CONFIGS, config, needs_library, stored_model
from wafergpt.backends.backend import Backend
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.torch_compiled import TorchCompiled, forward
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.checkpoints.stored_model import StoredModel
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
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT

SHAPE = config()
STORED = stored_model(SHAPE)


def torch_engine(**options: Any) -> Engine:
    return Engine(TorchEager(GPT.from_stored(STORED), **options))


def compiled_backend(stored: StoredModel, *, really: bool, **options: Any) -> TorchCompiled:
    """`really`: what it computes goes through torch.compile, which takes seconds for every shape."""
    backend = TorchCompiled(GPT.from_stored(stored), **options)
    backend._decode = backend._decode if really else forward
    return backend


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


REALLY = pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.long)])


@needs_library
@REALLY
def test_the_same_greedy_tokens_on_every_backend(really: bool) -> None:
    config_ = SamplingConfig(temperature=0, max_new_tokens=24)
    random = np.random.default_rng(1)
    requests: list[Request] = [
        Generate(prompt_ids=tuple(random.integers(0, SHAPE.vocab_size, n).tolist()), sampling=config_)
        for n in (1, 3, 31, 32, 33, 55)
    ]
    compiled = Engine(compiled_backend(STORED, really=really))
    found = [engine.run(requests) for engine in (torch_engine(), native_engine(), compiled)]
    assert found[0] == found[1] == found[2] and all(isinstance(result, Generated) for result in found[0])


def greedy_mix(shape: GPTConfig) -> list[Request]:
    """Shared salted beginnings, penalties, samples, beams, scores, hidden states; nothing is drawn."""
    ids = np.random.default_rng(4).integers(0, shape.vocab_size, 60).tolist()
    salted, plain = Terms(cache_salt=b"salt"), SamplingConfig(temperature=0, max_new_tokens=7)
    changed = SamplingConfig(
        temperature=0, max_new_tokens=9, min_new_tokens=3, repetition_penalty=1.3, logit_bias={3: 2.0}
    )
    return [
        *(Generate(prompt_ids=(*ids[:40], i), sampling=plain, n_top=2, terms=salted) for i in range(3)),
        Generate(prompt_ids=tuple(ids[:3]), sampling=changed, n=2),
        Score(token_ids=tuple(ids[:50]), n_context=20, terms=salted),
        Generate(prompt_ids=tuple(ids[5:30]), sampling=plain, n_beams=3, n=2),
        Hidden(token_ids=tuple(ids[:45]), last_only=False, terms=salted),
        Generate(prompt_ids=tuple(ids), sampling=changed, n_prompt_top=1, terms=Terms(priority=3)),
    ]


def figures(result: Any) -> tuple[list[Any], list[float]]:
    """What must be equal, and what may differ in the order of float32 sums."""
    if isinstance(result, HiddenStates):
        return [result.states.shape], result.states.ravel().tolist()
    if isinstance(result, Scored):
        return [], [score.log_probability for score in result.scores]
    assert isinstance(result, Generated), result
    scores = [score for sample in result.samples for score in sample.scores] + list(result.prompt_scores)
    return [(s.token_ids, s.finish_reason) for s in result.samples], [s.log_probability for s in scores]


@needs_library
@REALLY
@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixed_batch_on_every_backend(name: str, really: bool) -> None:
    """In little memory and small steps, twice: muP and tanh GELU, pieces of prompts beside decodes, reuse."""
    shape, n_run = CONFIGS[name], []
    stored, found = stored_model(shape), []
    native = NativeCPU.from_stored(stored, precision="f32", n_threads=1, n_pages=8)
    backends: list[Backend] = [
        TorchEager(GPT.from_stored(stored), n_pages=15),
        compiled_backend(stored, really=really, n_pages=15),
        native,
    ]
    for backend in backends:
        engine, run = Engine(backend, limits=Limits(step_tokens=24, max_sequences=6)), backend.run
        n_positions = [0]

        def counted(chunks: Any, run: Any = run, n_positions: list[int] = n_positions) -> Any:
            n_positions[0] += sum(len(chunk.token_ids) for chunk in chunks)
            return run(chunks)

        setattr(backend, "run", counted)  # noqa: B010
        results = engine.run(greedy_mix(shape))
        for _ in range(2):
            n_positions[0] = 0
            again = engine.run(greedy_mix(shape)[:1])
            assert figures(again[0])[0] == figures(results[0])[0]
        n_run.append(n_positions[0])
        found.append([figures(result) for result in results])
        engine.close()
        assert engine.scheduler.n_pages_free == backend.capacity.n_pages
    assert all(n < 41 + 6 for n in n_run), "the whole prompt was run again"
    for others in found[1:]:
        for (equal, close), (equal_, close_) in zip(found[0], others, strict=True):
            assert equal == equal_
            np.testing.assert_allclose(close, close_, atol=1e-3)


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
