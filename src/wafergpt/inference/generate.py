"""One prompt at a time: the plain loop of prefill, sample, decode, which `text` must agree with (no torch).

The context window: prompt and new tokens together never exceed `backend.max_seq_len`. A prompt that
leaves no room is refused by name; a generation that reaches the end of the window stops there and
says so (`FinishReason.LENGTH` with `window_full`). Nothing is ever cut from the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

from wafergpt.backends.backend import PromptBackend
from wafergpt.inference.request import FinishReason
from wafergpt.inference.sampling import Sampler, SamplingConfig
from wafergpt.inference.text import Generation, Piece, TextOfSample, encode_prompt
from wafergpt.tokenizer.bpe import Tokenizer


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
    sampler, text = (
        Sampler(config, ids, ending_ids=[tokenizer.end_of_text_id]),
        TextOfSample(tokenizer, config),
    )
    prefill = backend.prefill(ids)
    reason, logits = None, prefill.logits
    try:
        while reason is None:
            token_id = sampler.choose(logits[: tokenizer.vocab_size])
            if token_id == tokenizer.end_of_text_id:
                reason = FinishReason.END_OF_TEXT
            elif token_id in config.stop_token_ids:
                reason = FinishReason.STOP
            elif len(sampler.new_ids) == limit:
                reason = FinishReason.LENGTH
            yield text.push(token_id)
            if text.stopped:
                reason = FinishReason.STOP
            if reason is None:
                logits = backend.decode([prefill.handle], [token_id])[0]
    finally:
        backend.release(prefill.handle)
    yield text.finish(reason, window_full=len(sampler.new_ids) == room)


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
