"""Round trips and streaming for any text, and cuts that change nothing."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from wafergpt.tokenizer import encoder as encoder_module
from wafergpt.tokenizer.bpe import Tokenizer, byte_alphabet
from wafergpt.tokenizer.encoder import Encoder
from wafergpt.tokenizer.incremental import IncrementalDecoder
from wafergpt.tokenizer.pretokens import is_stable, last_safe_cut, pieces, split

TOKENIZER = Tokenizer.train(["it's the end of the world, naïve 中文。日本語 12 123 \n\n  the  end" * 30], 300)
ENCODER = Encoder(TOKENIZER)
PRE_TOKENS = pre_tokenizers.ByteLevel(add_prefix_space=False)
RANKS = {tuple(pair): rank for rank, pair in enumerate(json.loads(TOKENIZER.to_bytes())["model"]["merges"])}
STAND_INS = {byte: character for character, byte in byte_alphabet().items()}

# Characters on which GPT-2's pattern turns, mixed with any others.
TURNING = st.sampled_from(
    [*" \n\t'\x1c\x85\xa0\u2009\u3000.,-_aZsé5²٣中。，😀\u0301\u200b", "'s", "'ll", "  ", " the"]
)
TEXTS = st.lists(TURNING | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=60).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_round_trip_and_fast_encoder(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert ENCODER.encode(text).tolist() == ids
    if is_stable(text):
        assert "".join(split(text)) == text


def test_the_encoder_is_right_when_words_never_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it leaves pieces to the library, and its cache overflows."""
    monkeypatch.setattr(encoder_module, "_WARM_ENTRIES", 20)
    monkeypatch.setattr(encoder_module, "_CACHE_ENTRIES", 50)
    encoder = Encoder(TOKENIZER)
    text = " ".join(f"{n * n} the{n:x}" for n in range(20_000))
    assert encoder.encode(text).tolist() == TOKENIZER.encode(text)
    n_words = len(split(text))
    assert 0 < encoder._cache.n_misses < n_words / 5, "most pieces were left to the library"
    assert len(encoder._cache) <= 50


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 30))
def test_safe_cuts_do_not_change_the_ids(text: str, max_chars: int) -> None:
    parts = list(pieces(text, max_chars))
    assert "".join(parts) == text
    assert all(parts)
    assert [i for part in parts for i in TOKENIZER.encode(part)] == TOKENIZER.encode(text)
    cut = last_safe_cut(text, 0, max_chars)
    if cut is not None:
        assert 0 < cut <= max_chars
        assert cut < len(text)


def test_a_careless_cut_is_caught() -> None:
    """The planted bug: cutting at a fixed width changes the ids, so the property above can fail."""
    text = "the end of the world"
    careless = [text[i : i + 5] for i in range(0, len(text), 5)]
    assert [i for part in careless for i in TOKENIZER.encode(part)] != TOKENIZER.encode(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_streamed_text_is_the_whole_text(ids: list[int]) -> None:
    """Any ids, so any bytes: also sequences that are not UTF-8."""
    decoder = IncrementalDecoder(TOKENIZER)
    parts = [decoder.push(token_id) for token_id in ids]
    assert "".join(parts) + decoder.finish() == TOKENIZER.decode(ids)


@pytest.mark.parametrize("text", ["é", "中", "😀", "a😀b中"])
def test_no_half_character_is_emitted(text: str) -> None:
    ids = [TOKENIZER.inner.token_to_id(STAND_INS[byte]) for byte in text.encode()]  # one id per byte
    decoder = IncrementalDecoder(TOKENIZER)
    shown = [decoder.push(token_id) for token_id in ids]
    assert "\ufffd" not in "".join(shown)
    assert [part for part in shown if part] == list(text)
    assert decoder.finish() == ""


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS.map(str.encode) | st.binary(max_size=40), max_size=6).map(b"".join))
def test_any_bytes_come_back(data: bytes) -> None:
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_bytes_that_are_text_are_encoded_as_text(text: str) -> None:
    assert TOKENIZER.encode_bytes(text.encode()) == TOKENIZER.encode(text)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.binary(min_size=1, max_size=12))
def test_ids_are_those_of_the_textbook(text: str, data: bytes) -> None:
    """Byte-pair encoding as published (arXiv 1508.07909), over the library's pre-tokens."""
    words = [text[start:end].encode() for _, (start, end) in PRE_TOKENS.pre_tokenize_str(text)]
    assert TOKENIZER.encode(text) == [token_id for word in words for token_id in textbook(word, RANKS)]
    foreign = bytes(0x80 | byte & 0x3F for byte in data)  # continuation bytes that continue nothing
    assert TOKENIZER.encode_bytes(foreign) == textbook(foreign, RANKS)


def test_a_wrong_merge_order_is_caught() -> None:
    """The planted bug: the property above fails for merges in any other order."""
    backwards = {pair: -rank for pair, rank in RANKS.items()}
    assert textbook(b" then", backwards) != textbook(b" then", RANKS) == TOKENIZER.encode(" then")


def textbook(word: bytes, ranks: dict[tuple[str, str], int]) -> list[int]:
    """Join the pair of lowest rank, the leftmost first, until no pair has one."""
    parts = [STAND_INS[byte] for byte in word]
    while candidates := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [TOKENIZER.inner.token_to_id(part) for part in parts]
