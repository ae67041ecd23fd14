"""A running model as the tasks ask for it: text from prompts, likelihoods, hidden states (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import WaferGPTError
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Failed,
    Generated,
    Hidden,
    HiddenStates,
    NewToken,
    Result,
    Score,
    Scored,
)
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.text import TextOfSample, request_of_ids
from wafergpt.tasks.task import Decoding, Guide, Ids, Written
from wafergpt.tokenizer.bpe import Tokenizer

R = TypeVar("R", bound=Result)


class TaskModel:
    """`tasks.task.Model` on an engine."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, head: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.head: Mapping[str, NDArray[np.float32]] = head or {}
        self.window = engine.backend.max_seq_len

    def write(
        self, prompts: Sequence[Ids], decoding: Decoding, guides: Sequence[Guide | None] = ()
    ) -> list[Written]:
        """A continuation of each prompt, with its guide if there are any.

        Raises ConfigError for a prompt that leaves no room.
        """
        config = sampling_of(decoding)
        n_top = 0 if decoding.n_beams == 1 else None  # a beam knows its likelihood anyway
        requests = [
            replace(
                request_of_ids(self.tokenizer, ids, config),
                n_beams=decoding.n_beams,
                n_top=n_top,
                guide=guide,
            )
            for ids, guide in zip(prompts, guides or [None] * len(prompts), strict=True)
        ]
        found = []
        for result in self.engine.run(requests):
            sample = _checked(result, Generated).samples[0]
            text = TextOfSample(self.tokenizer, config)
            for token_id in sample.token_ids:
                text.push(token_id)
            text.finish(sample.finish_reason, sample.window_full)
            n_tokens = len(sample.token_ids)
            assert sample.total_log_probability is not None, "n_top asks for it"
            found.append(
                Written(
                    text=text.text,
                    n_tokens=n_tokens,
                    log_probability=sample.total_log_probability / max(1, n_tokens),
                    window_full=sample.window_full,
                )
            )
        return found

    def write_live(self, prompt: Ids, decoding: Decoding, on_text: Callable[[str], None]) -> Written:
        """As `write` for one prompt; `on_text` is given each piece of text once it is certain. No beams."""
        config = sampling_of(decoding)
        text = TextOfSample(self.tokenizer, config)
        total = 0.0
        for event in self.engine.stream(replace(request_of_ids(self.tokenizer, prompt, config), n_top=0)):
            if isinstance(event, NewToken):
                assert event.score is not None, "n_top asks for it"
                total += event.score.log_probability
                on_text(text.push(event.token_id).text)
                continue
            sample = _checked(event.result, Generated).samples[0]
            on_text(text.finish(sample.finish_reason, sample.window_full).text)
        n_tokens = len(text.token_ids)
        return Written(
            text=text.text,
            n_tokens=n_tokens,
            log_probability=total / max(1, n_tokens),
            window_full=sample.window_full,
        )

    def log_probabilities(
        self, rows: Sequence[tuple[Ids, int]], guides: Sequence[Guide | None] = ()
    ) -> list[list[float]]:
        """For each (ids, n given): nats of the tokens that are not given, each by all before it."""
        led = zip(rows, guides or [None] * len(rows), strict=True)
        results = self.engine.run(
            [Score(token_ids=ids, n_context=n_given, guide=guide) for (ids, n_given), guide in led]
        )
        return [[token.log_probability for token in _checked(r, Scored).scores] for r in results]

    def hidden(self, rows: Sequence[Ids], *, last_only: bool) -> list[NDArray[np.float32]]:
        """Last hidden states of each row, [1, D] or [T, D]."""
        results = self.engine.run([Hidden(token_ids=ids, last_only=last_only) for ids in rows])
        return [_checked(result, HiddenStates).states for result in results]


def sampling_of(decoding: Decoding) -> SamplingConfig:
    """The same, as the engine is told."""
    return SamplingConfig(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        frequency_penalty=decoding.frequency_penalty,
        seed=decoding.seed,
        stop=decoding.stop,
        max_new_tokens=decoding.max_new_tokens,
    )


def _checked(result: Result, kind: type[R]) -> R:
    """The result, if it is one; else what made the request fail is raised."""
    if isinstance(result, Failed):
        if isinstance(result.error, WaferGPTError):
            raise result.error
        raise WaferGPTError(result.message) from result.error
    assert isinstance(result, kind)
    return result
