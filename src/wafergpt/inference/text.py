"""Text in, text out, through the engine: prompts to ids, ids to text that is certain (no torch).

The context window: prompt and new tokens together never exceed `backend.max_seq_len`. A prompt that
leaves no room is refused by name; a generation that reaches the end of the window stops there and
says so (`FinishReason.LENGTH` with `window_full`). Nothing is ever cut from the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from wafergpt.backends.backend import Backend
from wafergpt.config import require
from wafergpt.errors import ConfigError, WaferGPTError
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import (
    Failed,
    Finished,
    FinishReason,
    Generate,
    Generated,
    NewToken,
    Result,
    Terms,
)
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.incremental import IncrementalDecoder


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text that is certain: whole characters, no part of a stop text. May be empty."""

    text: str
    token_id: int | None  # the token just sampled; None for what was held back until the end
    finish_reason: FinishReason | None = None  # set on the last piece
    window_full: bool = False


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished generation; `str()` of it is its text."""

    prompt: str
    text: str  # what follows the prompt
    token_ids: tuple[int, ...]  # as sampled, the ones of a stop text or end of text included
    n_prompt_tokens: int
    finish_reason: FinishReason
    window_full: bool  # LENGTH because prompt and text fill the context window

    def __str__(self) -> str:
        return self.text


class StopTexts:
    """Cuts a stream of text before the first stop text, holding back what may be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether a stop text was met (then nothing more will come)."""
        self._held += text
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        n_held = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - n_held
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """What was held back and turned out to be no stop text."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def encode_prompt(backend: Backend, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids; an empty prompt becomes one end-of-text token, the start of a new document.

    Raises ConfigError when the tokenizer does not fit the model or the prompt leaves no room in the window.
    """
    require(
        tokenizer.vocab_size <= backend.vocab_size,
        f"the tokenizer has {tokenizer.vocab_size} entries, the model only {backend.vocab_size}",
    )
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    if len(ids) >= backend.max_seq_len:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, which leaves no room in the context window of "
            f"{backend.max_seq_len}; shorten it to {backend.max_seq_len - 1} or fewer"
        )
    return ids


def request_of(
    engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, terms: Terms | None = None
) -> Generate:
    """What continuing `prompt` asks of the engine. Raises ConfigError as `encode_prompt`."""
    return request_of_ids(tokenizer, encode_prompt(engine.backend, tokenizer, prompt), config, terms)


def request_of_ids(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], config: SamplingConfig, terms: Terms | None = None
) -> Generate:
    """As `request_of`, for a prompt that is tokens already."""
    return Generate(
        prompt_ids=tuple(prompt_ids),
        sampling=config,
        end_of_text_id=tokenizer.end_of_text_id,
        n_choices=tokenizer.vocab_size,
        watch=(lambda: _watch(tokenizer, config)) if config.stop else None,
        terms=Terms() if terms is None else terms,
    )


def _watch(tokenizer: Tokenizer, config: SamplingConfig) -> Callable[[int], bool]:
    """Says of each token whether a stop text is complete with it, in the step that chose it.

    Whoever reads the events may be steps behind, so that it could not end the sample in time.
    """
    text = TextOfSample(tokenizer, config)

    def stops(token_id: int) -> bool:
        text.push(token_id)
        return text.stopped

    return stops


class TextOfSample:
    """Turns the tokens of one sample into pieces of text; knows when a stop text has ended it."""

    def __init__(self, tokenizer: Tokenizer, config: SamplingConfig) -> None:
        self._end_of_text_id, self._stop_ids = tokenizer.end_of_text_id, config.stop_token_ids
        self._decoder, self._stops = IncrementalDecoder(tokenizer), StopTexts(config.stop)
        self.stopped = False  # by a stop text: nothing more may be pushed
        self.text = ""  # of all pieces
        self.token_ids: list[int] = []

    def push(self, token_id: int) -> Piece:
        """The text that is certain with one more token; an end-of-text or stop token has none."""
        self.token_ids.append(token_id)
        text = ""
        if token_id != self._end_of_text_id and token_id not in self._stop_ids:
            text, self.stopped = self._stops.push(self._decoder.push(token_id))
        self.text += text
        return Piece(text=text, token_id=token_id)

    def finish(self, reason: FinishReason, window_full: bool) -> Piece:
        """The last piece: what was held back, and why it ended."""
        rest = ""
        if not self.stopped:
            rest, self.stopped = self._stops.push(self._decoder.finish())
            rest += self._stops.finish()
        self.text += rest
        reason = FinishReason.STOP if self.stopped else reason
        return Piece(
            text=rest,
            token_id=None,
            finish_reason=reason,
            window_full=window_full and reason is FinishReason.LENGTH,
        )


def stream(engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> Iterator[Piece]:
    """Continue `prompt`, yielding one piece per token and a last one with the finish reason.

    Raises ConfigError as `encode_prompt`, and what makes the generation fail. Closing the iterator early
    frees the sequence.
    """
    request = request_of(engine, tokenizer, prompt, config)
    return _pieces(engine, request, TextOfSample(tokenizer, config))


def _pieces(engine: Engine, request: Generate, text: TextOfSample) -> Iterator[Piece]:
    for event in engine.stream(request):
        if isinstance(event, NewToken):
            yield text.push(event.token_id)
        else:
            sample = _generated(event.result).samples[0]
            yield text.finish(sample.finish_reason, sample.window_full)


def _generated(result: Result) -> Generated:
    """The result, if it is one; else what made the request fail is raised."""
    if isinstance(result, Failed):
        if isinstance(result.error, WaferGPTError):
            raise result.error
        raise WaferGPTError(result.message) from result.error
    assert isinstance(result, Generated)
    return result


def generate(engine: Engine, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> Generation:
    """Continue `prompt` to the end. Raises ConfigError as `stream`."""
    return generate_all(engine, tokenizer, [prompt], config)[0]


def generate_all(
    engine: Engine, tokenizer: Tokenizer, prompts: Sequence[str], config: SamplingConfig
) -> list[Generation]:
    """Continue all prompts at once, each as it would be alone; in their order. Raises as `stream`."""
    requests = [request_of(engine, tokenizer, prompt, config) for prompt in prompts]
    return [samples[0] for samples in _all_samples(engine, tokenizer, requests, prompts)]


def generate_samples(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str,
    config: SamplingConfig,
    *,
    n: int = 1,
    best_of: int | None = None,
    n_beams: int = 1,
) -> list[Generation]:
    """`n` continuations of one prompt, as `Generate` says; the best first. Raises as `stream`."""
    request = replace(request_of(engine, tokenizer, prompt, config), n=n, best_of=best_of, n_beams=n_beams)
    return _all_samples(engine, tokenizer, [request], [prompt])[0]


def next_tokens(engine: Engine, tokenizer: Tokenizer, prompt: str, n: int) -> list[tuple[str, float]]:
    """The `n` likeliest tokens after `prompt` as text, with their probabilities; likeliest first.

    Half a character reads as U+FFFD. Raises ConfigError as `stream`, and for an `n` that is too large.
    """
    config = SamplingConfig(temperature=0.0, max_new_tokens=1)
    request = replace(request_of(engine, tokenizer, prompt, config), n_top=n)
    score = _generated(engine.run([request])[0]).samples[0].scores[0]
    return [(tokenizer.decode([token_id]), math.exp(log_p)) for token_id, log_p in score.top]


def _all_samples(
    engine: Engine, tokenizer: Tokenizer, requests: Sequence[Generate], prompts: Sequence[str]
) -> list[list[Generation]]:
    texts: dict[tuple[int, int], TextOfSample] = {}  # of (request, sample)
    results: dict[int, Generated] = {}
    with engine.subscribe(requests) as subscription:
        of = dict(zip(subscription.request_ids, requests, strict=True))
        for event in subscription:
            if isinstance(event, Finished):
                results[event.request_id] = _generated(event.result)
                continue
            key = event.request_id, event.sample
            text = texts.setdefault(key, TextOfSample(tokenizer, of[event.request_id].sampling))
            text.push(event.token_id)
    found = []
    for number, prompt in zip(subscription.request_ids, prompts, strict=True):
        generations = []
        for sample in results[number].samples:
            text = texts.get((number, sample.index)) or TextOfSample(tokenizer, of[number].sampling)
            for token_id in sample.token_ids[len(text.token_ids) :]:  # all of a beam's: it sends none
                text.push(token_id)
            last = text.finish(sample.finish_reason, sample.window_full)
            assert last.finish_reason is not None
            generations.append(
                Generation(
                    prompt=prompt,
                    text=text.text,
                    token_ids=tuple(text.token_ids),
                    n_prompt_tokens=len(of[number].prompt_ids),
                    finish_reason=last.finish_reason,
                    window_full=last.window_full,
                )
            )
        found.append(generations)
    return found
