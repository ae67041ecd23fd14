"""Decoding a stream of ids into text that can be shown at once: never half a character."""

from __future__ import annotations

import codecs

from wafergpt.tokenizer.bpe import Tokenizer


class IncrementalDecoder:
    """Turns ids into text one by one; all pieces joined equal `tokenizer.decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now; empty while a character still misses bytes.

        Raises DataError for an id outside the vocabulary.
        """
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character whose bytes never came. Ready for reuse."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
