"""Text in, text out, piece by piece: the loop of prefill, sample, decode (no torch).

The context window: prompt and new tokens together never exceed `backend.max_seq_len`. A prompt that
leaves no room is refused by name; a generation that reaches the end of the window stops there and
says so (`FinishReason.LENGTH` with `window_full`). Nothing is ever cut from the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wafergpt.backends.backend import PromptBackend
from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.inference.request import FinishReason
from wafergpt.inference.sampling import Sampler, SamplingConfig
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


def encode_prompt(backend: PromptBackend, tokenizer: Tokenizer, prompt: str) -> list[int]:
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


def stream(
    backend: PromptBackend, tokenizer: Tokenizer, prompt: str, config: SamplingConfig
) -> Iterator[Piece]:
    """Continue `prompt`, yielding one piece per token and a last one with the finish reason.

    Raises ConfigError as `encode_prompt`. Closing the iterator early frees the sequence.
    """
    ids = encode_prompt(backend, tokenizer, prompt)
    room = backend.max_seq_len - len(ids)
    return _stream(backend, tokenizer, ids, config, min(room, config.max_new_tokens), room)


def _stream(
    backend: PromptBackend,
    tokenizer: Tokenizer,
    ids: list[int],
    config: SamplingConfig,
    limit: int,
    room: int,
) -> Iterator[Piece]:
    sampler = Sampler(config, ids, ending_ids=[tokenizer.end_of_text_id])
    decoder, stops = IncrementalDecoder(tokenizer), StopTexts(config.stop)
    reason, n_new = FinishReason.LENGTH, 0
    prefill = backend.prefill(ids)
    try:
        logits = prefill.logits
        while True:
            token_id = sampler.choose(logits[: tokenizer.vocab_size])
            n_new += 1
            if token_id == tokenizer.end_of_text_id:
                reason = FinishReason.END_OF_TEXT
                yield Piece(text="", token_id=token_id)
                break
            if token_id in config.stop_token_ids:
                reason = FinishReason.STOP
                yield Piece(text="", token_id=token_id)
                break
            text, stopped = stops.push(decoder.push(token_id))
            yield Piece(text=text, token_id=token_id)
            if stopped:
                reason = FinishReason.STOP
                break
            if n_new == limit:
                break
            logits = backend.decode([prefill.handle], [token_id])[0]
    finally:
        backend.release(prefill.handle)
    rest = ""
    if reason is not FinishReason.STOP:
        rest, stopped = stops.push(decoder.finish())
        if stopped:
            reason = FinishReason.STOP
        rest += stops.finish()
    window_full = reason is FinishReason.LENGTH and n_new == room
    yield Piece(text=rest, token_id=None, finish_reason=reason, window_full=window_full)


def generate(backend: PromptBackend, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> Generation:
    """Continue `prompt` to the end. Raises ConfigError as `stream`."""
    pieces = list(stream(backend, tokenizer, prompt, config))
    last = pieces[-1]
    assert last.finish_reason is not None
    return Generation(
        prompt=prompt,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(piece.token_id for piece in pieces if piece.token_id is not None),
        n_prompt_tokens=len(encode_prompt(backend, tokenizer, prompt)),
        finish_reason=last.finish_reason,
        window_full=last.window_full,
    )
