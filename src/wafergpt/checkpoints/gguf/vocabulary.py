"""A tokenizer <-> the `tokenizer.*` keys of a GGUF file.

llama.cpp's pre-tokenizer "gpt-2" is GPT-2's own pattern, so vocabulary and merges are all it needs
(key names: GGUF specification; token types: llama_token_type of llama.h).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from wafergpt.checkpoints.gguf.layout import Value, ValueType
from wafergpt.errors import CheckpointError, shown
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.tokenizer_file import tokenizer_from_files

Item = TypeVar("Item", str, int)

# Ours, unknown to llama.cpp: the tokens are place holders because the model has no tokenizer.
PLACE_HOLDERS_KEY = "wafergpt.token_place_holders"
CHAT_TEMPLATE_KEY = "tokenizer.chat_template"


class TokenType(IntEnum):
    """llama.cpp's classes of tokens; the two that a byte-level BPE file never has are left out."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a file says about text; `notes` name what could not be kept."""

    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    notes: tuple[str, ...] = ()


def tokenizer_metadata(
    tokenizer: Tokenizer | None, chat_template: str | None, vocab_size: int
) -> dict[str, Value]:
    """The keys for a model of `vocab_size` rows; ids without a token become unused place holders.

    Raises CheckpointError when the tokenizer has more ids than the model has rows.
    """
    if tokenizer is None:
        return _place_holders(vocab_size)
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {vocab_size} embedding rows"
        )
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    token_types = [int(TokenType.UNUSED)] * vocab_size
    special = {token.content for token in tokenizer.inner.get_added_tokens_decoder().values()}
    for token, token_id in tokenizer.inner.get_vocab(with_added_tokens=True).items():
        tokens[token_id] = token
        token_types[token_id] = int(TokenType.CONTROL if token in special else TokenType.NORMAL)
    merges = [" ".join(pair) for pair in _pairs(json.loads(tokenizer.to_bytes())["model"]["merges"])]
    keys = _keys(tokens, token_types, merges, tokenizer.end_of_text_id)
    if chat_template is not None:
        keys[CHAT_TEMPLATE_KEY] = Value(type=ValueType.STRING, value=chat_template)
    return keys


def _place_holders(vocab_size: int) -> dict[str, Value]:
    """A vocabulary for a model without one: `<17>` stands for id 17, so prompts can be written as ids.

    llama.cpp's server aborts on a file that declares to have none. It also needs an end of text: the last id,
    as in GPT-2.
    """
    tokens = [f"<{token_id}>" for token_id in range(vocab_size)]
    keys = _keys(tokens, [int(TokenType.USER_DEFINED)] * vocab_size, [], vocab_size - 1)
    return keys | {PLACE_HOLDERS_KEY: Value(type=ValueType.BOOL, value=True)}


def _keys(tokens: list[str], token_types: list[int], merges: list[str], end_id: int) -> dict[str, Value]:
    return {
        "tokenizer.ggml.model": Value(type=ValueType.STRING, value="gpt2"),
        "tokenizer.ggml.pre": Value(type=ValueType.STRING, value="gpt-2"),
        "tokenizer.ggml.tokens": Value(type=ValueType.STRING, value=tokens),
        "tokenizer.ggml.token_type": Value(type=ValueType.INT32, value=token_types),
        "tokenizer.ggml.merges": Value(type=ValueType.STRING, value=merges),
        "tokenizer.ggml.bos_token_id": Value(type=ValueType.UINT32, value=end_id),
        "tokenizer.ggml.eos_token_id": Value(type=ValueType.UINT32, value=end_id),
        "tokenizer.ggml.add_bos_token": Value(type=ValueType.BOOL, value=False),
    }


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; the `tokenizers` library has written both "a b" and ["a", "b"]."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    return [(left, right) for left, right in pairs]


def read_vocabulary(metadata: Mapping[str, Value], vocab_size: int) -> Vocabulary:
    """The tokenizer and chat template of a file whose embedding has `vocab_size` rows.

    A vocabulary that is not GPT-2's byte-level BPE is left out with a note. Raises CheckpointError for one
    that contradicts itself or the model, DataError for one that is no tokenizer.
    """
    kind = _text(metadata, "tokenizer.ggml.model")
    if PLACE_HOLDERS_KEY in metadata or kind in (None, "none", "no_vocab"):
        return Vocabulary(notes=("the file has no tokenizer; the model works on token ids only",))
    pattern = _text(metadata, "tokenizer.ggml.pre")
    template = _text(metadata, CHAT_TEMPLATE_KEY)
    if (kind, pattern) != ("gpt2", "gpt-2"):
        what = f"tokenizer of kind {shown(kind)} with pre-tokenizer {shown(pattern)}"
        return Vocabulary(chat_template=template, notes=(f"left out the {what}: not GPT-2's byte-level BPE",))
    tokens = _list(metadata, "tokenizer.ggml.tokens", str)
    token_types = _list(metadata, "tokenizer.ggml.token_type", int)
    if not len(tokens) == len(token_types) == vocab_size:
        raise CheckpointError(
            f"it has {len(tokens)} tokens and {len(token_types)} token types for {vocab_size} embedding rows"
        )
    tokenizer = _tokenizer(tokens, token_types, _list(metadata, "tokenizer.ggml.merges", str))
    return Vocabulary(tokenizer=tokenizer, chat_template=template)


def _tokenizer(tokens: list[str], token_types: list[int], merges: list[str]) -> Tokenizer:
    """Built anew from plain data, all of it checked by `tokenizer_from_files`."""
    vocabulary: dict[str, int] = {}
    special: dict[str, Any] = {}
    for token_id, (token, token_type) in enumerate(zip(tokens, token_types, strict=True)):
        if token_type == TokenType.UNUSED:
            continue
        if token in vocabulary:
            raise CheckpointError(f"the token {shown(token)} has the ids {vocabulary[token]} and {token_id}")
        if token_type == TokenType.CONTROL:
            special[token] = token_id
        elif token_type != TokenType.NORMAL:
            raise CheckpointError(f"the token {shown(token)} is of type {token_type}, unknown to GPT-2's BPE")
        vocabulary[token] = token_id
    # The head line keeps a first merge of "#version" from being taken for one.
    return tokenizer_from_files(vocabulary, "\n".join(["#version: 0.2", *merges]), special)


def _text(metadata: Mapping[str, Value], key: str) -> str | None:
    value = metadata[key].value if key in metadata else None
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"'{key}' is not text")
    return value


def _list(metadata: Mapping[str, Value], key: str, kind: type[Item]) -> list[Item]:
    value = metadata[key].value if key in metadata else None
    if not isinstance(value, list) or any(type(item) is not kind for item in value[:1]):
        raise CheckpointError(f"'{key}' is missing or not a list of {kind.__name__}")
    return value
