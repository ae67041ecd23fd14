"""GPT-2's byte-level byte-pair encoding on the `tokenizers` library: its own 50,257 entries, or trained.

Text is always encoded as plain text: `<|endoftext|>` written by a user becomes ordinary tokens, and
the id `end_of_text_id` is only ever placed by the program.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from wafergpt.assets.fetch import fetch
from wafergpt.errors import ConfigError, DataError
from wafergpt.tokenizer.pretokens import pieces

END_OF_TEXT = "<|endoftext|>"  # the name in GPT-2's encoder.json (id 50256)
FILE_NAME = "tokenizer.json"
_TRAINING_PIECE_CHARS = 1 << 16


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in character -> the byte it stands for (encoder.py, bytes_to_unicode)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_STAND_INS = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)  # by byte
_FOREIGN_BYTES = re.compile("([\udc80-\udcff]+)")


class Tokenizer:
    """A byte-level BPE tokenizer with an end-of-text token; every Unicode text round-trips."""

    def __init__(self, inner: tokenizers.Tokenizer, *, is_ours: bool = False) -> None:
        """Wrap a `tokenizers.Tokenizer`; raises DataError if it is not GPT-2's kind (`_refuse_foreign`).

        `is_ours`: `byte_level` made it, with an end of text; the costly look at its whole form is left out.
        """
        self._form = str(inner.to_str(pretty=False))
        if not is_ours:
            _refuse_foreign(json.loads(self._form))
        inner.encode_special_tokens = True  # user text never parses special tokens
        self.inner = inner
        vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.end_of_text_id: int = vocabulary[END_OF_TEXT]
        self.vocab_size: int = max(vocabulary.values()) + 1
        special = {token.content for token in inner.get_added_tokens_decoder().values()}
        self._bytes = _bytes_by_id(vocabulary, special)

    # -- encoding and decoding

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises DataError for a lone surrogate, which no UTF-8 file can hold."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, encoded in parallel by the library."""
        try:
            return [
                encoding.ids
                for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
            ]
        except (UnicodeEncodeError, TypeError):
            raise DataError("text cannot be encoded: it is not UTF-8 (it holds half a character)") from None

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids that `decode_bytes` turns back into `data`, whatever it holds; `encode` where it is UTF-8.

        Each stretch that is not UTF-8 is a pre-token of its own: GPT-2's pattern speaks of characters only.
        """
        ids: list[int] = []
        # surrogateescape turns each byte that is not part of a character into U+DC80 to U+DCFF.
        for stretch in _FOREIGN_BYTES.split(data.decode("utf-8", "surrogateescape")):
            if _FOREIGN_BYTES.fullmatch(stretch):
                stand_ins = "".join(_STAND_INS[ord(escaped) - 0xDC00] for escaped in stretch)
                ids += (token.id for token in self.inner.model.tokenize(stand_ins))
            else:
                ids += self.encode(stretch)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for. Raises DataError for an id outside the vocabulary."""
        value = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        if value is None:
            raise DataError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return value

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`; a token may hold part of a character."""
        return b"".join(self.token_bytes(int(token_id)) for token_id in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # -- files

    def to_bytes(self) -> bytes:
        """The whole tokenizer as the bytes of a `tokenizer.json` (the Hugging Face format)."""
        return self._form.encode()

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_bytes()`: the identity stored in manifests."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: Path) -> Path:
        """Write `tokenizer.json` to `path` (a .json file or a folder); returns the file's path."""
        file = path if path.suffix == ".json" else path / FILE_NAME
        file.write_bytes(self.to_bytes())
        return file

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """The inverse of `to_bytes`. Raises DataError if the data are not a byte-level BPE tokenizer."""
        try:
            inner = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"not a tokenizer.json: {error}") from None
        return cls(inner)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a `tokenizer.json`, given the file or its folder. Raises DataError naming the file."""
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            return cls.from_bytes(file.read_bytes())
        except FileNotFoundError:
            raise DataError(f"tokenizer '{file}' does not exist") from None
        except (OSError, DataError) as error:
            raise DataError(f"{file}: {error}") from None

    # -- where tokenizers come from

    @classmethod
    def gpt2(cls, *, offline: bool = False) -> Tokenizer:
        """GPT-2's own tokenizer (50,257 entries), from the asset `gpt2-tokenizer`; raises AssetError."""
        folder = fetch("gpt2-tokenizer", offline=offline)
        return cls.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")

    @classmethod
    def from_gpt2_files(cls, vocabulary: Path, merges: Path) -> Tokenizer:
        """From `encoder.json`/`vocab.json` and `vocab.bpe`/`merges.txt`. Raises DataError."""
        try:
            entries = json.loads(vocabulary.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").split("\n")
            pairs = [(left, right) for left, right in (line.split(" ") for line in lines[1:] if line)]
            model = models.BPE(vocab=entries, merges=pairs)
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read GPT-2 tokenizer files '{vocabulary}' and '{merges}': {error}"
            ) from None
        return cls(byte_level(model))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn `vocab_size` entries (256 bytes, end of text, merges) from `texts`; same input, same result.

        Raises ConfigError for a size below 257, DataError if the texts hold too few distinct pairs.
        """
        smallest = len(byte_alphabet()) + 1
        if vocab_size < smallest:
            raise ConfigError(
                f"vocabulary size {vocab_size} is too small; a byte-level BPE has at least {smallest}"
            )
        inner = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,  # a pair seen once teaches nothing
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(byte_alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(_training_pieces(texts), trainer)
        got: int = inner.get_vocab_size()
        if got < vocab_size:
            raise DataError(f"the corpus is too small for {vocab_size} tokenizer entries; it supports {got}")
        return cls(inner)


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from pieces(text, _TRAINING_PIECE_CHARS)


def byte_level(model: models.BPE, special: Sequence[str] = (END_OF_TEXT,)) -> tokenizers.Tokenizer:
    """GPT-2's pipeline round `model`; special tokens it has no entry for get the next ids, in their order."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    return inner


def _bytes_by_id(vocabulary: dict[str, int], special: set[str]) -> list[bytes | None]:
    """What each id decodes to; None where a vocabulary leaves a gap."""
    alphabet = byte_alphabet()
    if not alphabet.keys() <= vocabulary.keys():
        raise DataError("tokenizer lacks some of the 256 byte entries, so it cannot encode every text")
    table: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        try:
            raw = token.encode() if token in special else bytes(alphabet[character] for character in token)
        except KeyError:
            raise DataError(f"tokenizer entry {token!r} (id {token_id}) is not byte-level") from None
        table[token_id] = raw
    return table


def _refuse_foreign(form: dict[str, Any]) -> None:
    """Raise DataError unless this `tokenizer.json` is BPE over GPT-2's byte-level pre-tokens."""
    added = form.get("added_tokens") or []
    before = form.get("pre_tokenizer") or {}
    model = form.get("model") or {}
    problems = [
        (model.get("type") != "BPE", f"its model is {model.get('type')}, not BPE"),
        (bool(model.get("dropout")), "it uses BPE dropout, so encoding is random"),
        (before.get("type") != "ByteLevel", f"its pre-tokenizer is {before.get('type')}, not ByteLevel"),
        (before.get("add_prefix_space") is True, "it adds a space before the text (add_prefix_space)"),
        (before.get("use_regex") is False, "it does not split by GPT-2's pattern (use_regex false)"),
        (
            any(not token["special"] for token in added),
            "it has added words that are not special tokens, which would split pre-tokens",
        ),
        (form.get("normalizer") is not None, "it normalises text, so decoding would not give it back"),
        (all(token["content"] != END_OF_TEXT for token in added), f"it has no special token {END_OF_TEXT}"),
    ]
    for wrong, message in problems:
        if wrong:
            raise DataError(f"not a GPT-2 style tokenizer: {message}")
