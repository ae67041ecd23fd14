"""Text through the engine is, piece for piece, what the plain loop over the model writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from inference_lab import HashBackend, plain_generate, plain_stream
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.errors import ConfigError, NonFiniteError, WaferGPTError
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import FinishReason, Generate, Generated
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.text import TextOfSample, generate, generate_all, request_of, stream
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.train(["abc"], 257)  # one token per byte, and end of text
CONFIG = GPTConfig(d_model=32, n_layers=1, n_heads=2, vocab_size=260, max_seq_len=40, init_std=0.3)


@pytest.fixture(scope="module")
def backend() -> TorchEager:
    return TorchEager(GPT(CONFIG))


def test_every_piece_is_the_plain_loops(backend: TorchEager) -> None:
    """Six settings and four prompts: ends of every kind, characters cut, stops held back."""
    prompts = ["", "In the", "é€", "x" * 38]
    some = plain_generate(backend, BYTES, "In the", SamplingConfig(seed=1)).text
    reasons = set()
    for options in (
        {"temperature": 0.0},
        {"seed": 1},
        {"seed": 1, "stop": (some[4:6], "zz")},
        {"seed": 3, "stop": ("e", "a"), "max_new_tokens": 20},
        {"seed": 2, "stop_token_ids": tuple(range(0, 256, 9)), "min_new_tokens": 3},
        {"seed": 4, "temperature": 0.8, "logit_bias": {BYTES.end_of_text_id: 8.0}, "max_new_tokens": 9},
    ):
        config = SamplingConfig(**options)
        engine = Engine(backend)
        for prompt in prompts:
            expected = list(plain_stream(backend, BYTES, prompt, config))
            assert list(stream(engine, BYTES, prompt, config)) == expected
            assert generate(engine, BYTES, prompt, config) == plain_generate(backend, BYTES, prompt, config)
            reasons.add((expected[-1].finish_reason, expected[-1].window_full))
        together = generate_all(engine, BYTES, prompts, config)
        assert together == [plain_generate(backend, BYTES, prompt, config) for prompt in prompts]
        assert not engine.has_work
    assert {reason for reason, _ in reasons} == set(FinishReason) and (FinishReason.LENGTH, True) in reasons


def test_leaving_early_frees_the_sequence(backend: TorchEager) -> None:
    engine = Engine(backend)
    pieces = stream(engine, BYTES, "x", SamplingConfig())
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not engine.has_work and engine.scheduler.n_pages_free == backend.capacity.n_pages


def test_refusals_come_at_once(backend: TorchEager) -> None:
    engine = Engine(backend)
    with pytest.raises(ConfigError, match="has 40 tokens, which leaves no room in the context window of 40"):
        stream(engine, BYTES, "x" * 40, SamplingConfig())
    with pytest.raises(ConfigError, match="tokenizer has 262 entries, the model only 260"):
        stream(engine, Tokenizer.train(["abcdefgh " * 50, "ab cd ef"], 262), "x", SamplingConfig())
    assert not engine.has_work


def test_failures_are_raised_and_take_the_others_along() -> None:
    model = GPT(CONFIG)
    with torch.no_grad():
        model.wte.weight[7] = float("nan")
    engine = Engine(TorchEager(model))
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        generate_all(engine, BYTES, ["a", "b"], SamplingConfig())
    assert not engine.has_work


def test_a_foreign_error_becomes_ours(backend: TorchEager, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("cable cut")

    monkeypatch.setattr(backend, "run", broken)
    with pytest.raises(WaferGPTError, match="a step failed: cable cut"):
        generate(Engine(backend), BYTES, "a", SamplingConfig())


def test_the_mask_sees_what_the_engine_chose(backend: TorchEager) -> None:
    allowed = np.zeros(257, bool)
    allowed[[97, 98]] = True
    request = Generate(prompt_ids=(1,), n_choices=257, mask=lambda _: allowed)
    result = Engine(backend).run([request])[0]
    assert set(result.samples[0].token_ids) <= {97, 98}  # type: ignore[union-attr]


@pytest.mark.parametrize("n_others", [0, 1, 7])
def test_a_slow_reader_sees_nothing_behind_a_stop_text(n_others: int) -> None:
    """Others move the engine on while it reads: the sample ends in the step that completes the stop text."""
    backend = HashBackend(vocab_size=260)
    free = plain_generate(backend, BYTES, "ab", SamplingConfig(seed=1, max_new_tokens=20))
    at = free.text.index(".b")
    assert 3 < at < 15
    for stop in ((".b",), (".b4", "zz"), (".",), (free.text[at + 1], free.text[at:])):
        config = SamplingConfig(seed=1, max_new_tokens=20, stop=stop)
        expected = list(plain_stream(backend, BYTES, "ab", config))
        engine, pieces = Engine(backend), []
        for piece in stream(engine, BYTES, "ab", config):
            pieces.append(piece)
            other = Generate(prompt_ids=(1,), sampling=SamplingConfig(seed=1, max_new_tokens=5))
            engine.run([other] * n_others)
        assert pieces == expected and pieces[-1].finish_reason is FinishReason.STOP
        assert not engine.has_work


def test_best_of_weighs_no_token_behind_a_stop_text() -> None:
    """The tokens of a sample, and so its mean log-probability, end with the stop text."""
    backend = HashBackend(vocab_size=260)
    config = SamplingConfig(seed=1, max_new_tokens=20, stop=("a", "e", "i", "o", "\ufffd"))
    engine = Engine(backend)
    request = replace(request_of(engine, BYTES, "ab", config), n=5, best_of=5)
    [result] = engine.run([request])
    assert isinstance(result, Generated)
    for sample in result.samples:
        text = TextOfSample(BYTES, config)
        for token_id in sample.token_ids:
            assert not text.stopped
            text.push(token_id)
        assert text.stopped == (sample.finish_reason is FinishReason.STOP)
    means = [s.total_log_probability / len(s.token_ids) for s in result.samples]
    assert means == sorted(means, reverse=True) and len({len(s.token_ids) for s in result.samples}) > 1
