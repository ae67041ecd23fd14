"""A backend that needs no model (rows are a hash of the tokens so far, its rules checked); the plain loop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.backends.backend import Backend, Capacity, Chunk, ChunkResult, OutOfPages
from wafergpt.inference.request import FinishReason
from wafergpt.inference.sampling import Sampler, SamplingConfig
from wafergpt.inference.text import Generation, Piece, TextOfSample, encode_prompt
from wafergpt.tokenizer.bpe import Tokenizer

D_MODEL = 4


def row_after(token_ids: Sequence[int], vocab_size: int, scale: float = 3.0) -> NDArray[np.float32]:
    """The logits [V] that `HashBackend` gives after these tokens."""
    seed = hashlib.blake2b(np.asarray(token_ids, np.int64).tobytes(), digest_size=8).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
    return (scale * random.standard_normal(vocab_size)).astype(np.float32)


class HashBackend:
    """A `Backend`; a page's content is its tokens, so that wrong sharing shows in the rows."""

    batch_invariant = True
    d_model = D_MODEL

    def __init__(
        self, *, vocab_size: int = 50, max_seq_len: int = 64, page_tokens: int = 4, n_pages: int = 64
    ) -> None:
        self.vocab_size, self.max_seq_len = vocab_size, max_seq_len
        self.capacity = Capacity(page_tokens=page_tokens, n_pages=n_pages)
        self.tokens: dict[int, list[int]] = {}
        self.pages: dict[int, list[object]] = {}  # one object for each page, shared by its holders
        self.n_handles = 0
        self.steps: list[list[Chunk]] = []
        self.failing: set[int] = set()  # token ids whose step fails
        self.n_pages_peak = 0

    @property
    def n_pages_used(self) -> int:
        return len({id(page) for pages in self.pages.values() for page in pages})

    @property
    def n_run(self) -> int:
        """Positions computed so far."""
        return sum(len(chunk.token_ids) for step in self.steps for chunk in step)

    def open(self) -> int:
        return self._add([], [])

    def fork(self, sequence: int, n_tokens: int) -> int:
        assert 0 <= n_tokens <= len(self.tokens[sequence])
        n_whole, rest = divmod(n_tokens, self.capacity.page_tokens)
        self._check_free(bool(rest))
        pages = [*self.pages[sequence][:n_whole], *([object()] if rest else [])]
        return self._add(self.tokens[sequence][:n_tokens], pages)

    def release(self, sequence: int) -> None:
        del self.tokens[sequence], self.pages[sequence]

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        assert len({c.sequence for c in chunks}) == len(chunks) > 0
        needed = {}
        for c in chunks:
            n_tokens = len(self.tokens[c.sequence]) + len(c.token_ids)
            assert len(c.token_ids) >= 1 and 0 <= c.n_logits <= len(c.token_ids)
            assert n_tokens <= self.max_seq_len
            assert all(0 <= i < self.vocab_size for i in c.token_ids)
            needed[c.sequence] = -(-n_tokens // self.capacity.page_tokens) - len(self.pages[c.sequence])
        self._check_free(sum(needed.values()))
        self.steps.append(list(chunks))
        if any(i in self.failing for c in chunks for i in c.token_ids):
            raise RuntimeError("a planted fault")
        for sequence, n_pages in needed.items():
            self.pages[sequence] += [object() for _ in range(n_pages)]
        self.n_pages_peak = max(self.n_pages_peak, self.n_pages_used)
        return [self._result(c) for c in chunks]

    def _result(self, c: Chunk) -> ChunkResult:
        tokens = self.tokens[c.sequence]
        start = len(tokens)
        tokens += c.token_ids
        n = len(tokens)
        logits = [row_after(tokens[: end + 1], self.vocab_size) for end in range(n - c.n_logits, n)]
        hidden = [row_after(tokens[: end + 1], D_MODEL) for end in range(start, n)]
        return ChunkResult(
            logits=np.stack(logits) if logits else None, hidden=np.stack(hidden) if c.want_hidden else None
        )

    def _check_free(self, n_pages: int) -> None:
        if n_pages > self.capacity.n_pages - self.n_pages_used:
            raise OutOfPages("the scheduler let the memory run out")

    def _add(self, tokens: list[int], pages: list[object]) -> int:
        self.n_handles += 1
        self.tokens[self.n_handles], self.pages[self.n_handles] = list(tokens), pages
        self.n_pages_peak = max(self.n_pages_peak, self.n_pages_used)
        return self.n_handles


def plain_stream(
    backend: Backend, tokenizer: Tokenizer, prompt: str, config: SamplingConfig
) -> Iterator[Piece]:
    """One prompt, one loop of run and sample, no engine: what `text.stream` must agree with."""
    ids = encode_prompt(backend, tokenizer, prompt)
    room = backend.max_seq_len - len(ids)
    sampler = Sampler(config, ids, ending_ids=[tokenizer.end_of_text_id])
    text, sequence = TextOfSample(tokenizer, config), backend.open()
    reason, new_ids = None, list(ids)
    while reason is None:
        logits = backend.run([Chunk(sequence=sequence, token_ids=new_ids)])[0].logits
        assert logits is not None
        token_id = sampler.choose(logits[0, : tokenizer.vocab_size])
        if token_id == tokenizer.end_of_text_id:
            reason = FinishReason.END_OF_TEXT
        elif token_id in config.stop_token_ids:
            reason = FinishReason.STOP
        elif len(sampler.new_ids) == min(room, config.max_new_tokens):
            reason = FinishReason.LENGTH
        yield text.push(token_id)
        if text.stopped:
            reason = FinishReason.STOP
        new_ids = [token_id]
    backend.release(sequence)
    yield text.finish(reason, window_full=len(sampler.new_ids) == room)


def plain_generate(backend: Backend, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> Generation:
    """All of `plain_stream`."""
    pieces = list(plain_stream(backend, tokenizer, prompt, config))
    assert pieces[-1].finish_reason is not None
    return Generation(
        prompt=prompt,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(piece.token_id for piece in pieces if piece.token_id is not None),
        n_prompt_tokens=len(encode_prompt(backend, tokenizer, prompt)),
        finish_reason=pieces[-1].finish_reason,
        window_full=pieces[-1].window_full,
    )
