"""More entries on top of a tokenizer's own: what stays, what gets shorter, what is refused."""

from __future__ import annotations

import random

import pytest
from tokenizers import models

from wafergpt.errors import ConfigError, DataError
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer, byte_alphabet, byte_level
from wafergpt.tokenizer.extension import extended

ENGLISH = "the cat sat on the mat. the rat sat on the cat; the mat is flat, isn't it?\n" * 20
WORDS = ["单元格", "返回", "数值", "选择", "公式", "工作表", "的", "打开"]
N_NEW = 60


def chinese(n: int, seed: int = 0) -> list[str]:
    """Sentences of those words."""
    draw = random.Random(seed)
    return [" " + "".join(draw.choices(WORDS, k=draw.randint(3, 8))) + "。" for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([ENGLISH], 275)


@pytest.fixture(scope="module")
def wider(tokenizer: Tokenizer) -> Tokenizer:
    return extended(tokenizer, chinese(200), N_NEW)


def test_entries_keep_their_ids_and_the_new_ones_follow(tokenizer: Tokenizer, wider: Tokenizer) -> None:
    assert wider.vocab_size == 275 + N_NEW
    assert wider.end_of_text_id == tokenizer.end_of_text_id
    assert all(wider.token_bytes(i) == tokenizer.token_bytes(i) for i in range(275))
    new = [wider.token_bytes(i) for i in range(275, 275 + N_NEW)]
    assert len({*new}) == N_NEW and not {*new} & {tokenizer.token_bytes(i) for i in range(275)}
    assert "单元格".encode() in new


def test_what_was_learned_from_gets_shorter_and_other_text_stays(
    tokenizer: Tokenizer, wider: Tokenizer
) -> None:
    unseen = chinese(50, seed=1)
    before, after = (sum(len(t.encode(text)) for text in unseen) for t in (tokenizer, wider))
    assert after < before / 4  # three bytes to a character, two or three characters to most of the words
    assert wider.encode(ENGLISH) == tokenizer.encode(ENGLISH)
    for text in [*unseen, ENGLISH, f"单{END_OF_TEXT}é 🦀 元", "x" * 70_000]:
        assert wider.decode(wider.encode(text)) == text


def test_a_word_said_often_becomes_one_entry(tokenizer: Tokenizer, wider: Tokenizer) -> None:
    assert max(len(tokenizer.encode(word)) for word in WORDS) == 9
    assert all(len(wider.encode(word)) == 1 for word in WORDS)


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Tokenizer, wider: Tokenizer) -> None:
    assert extended(tokenizer, iter(chinese(200)), N_NEW).sha256 == wider.sha256
    assert extended(tokenizer, chinese(200, seed=2), N_NEW).sha256 != wider.sha256
    assert Tokenizer.from_bytes(wider.to_bytes()).sha256 == wider.sha256


def test_an_extended_tokenizer_is_extended_again(wider: Tokenizer) -> None:
    again = extended(wider, ["naïve café déjà vu " * 9], 5)
    assert again.vocab_size == 275 + N_NEW + 5 and again.encode("单元格") == wider.encode("单元格")


def test_another_way_to_an_entry_is_no_new_entry() -> None:
    """`abc` is there as a + bc; but a + b comes first, and ab + c is learned as another way to it."""
    entries = byte_alphabet() | {END_OF_TEXT: 256, "ab": 257, "bc": 258, "abc": 259}
    merges = [("a", "b"), ("b", "c"), ("a", "bc")]
    base = Tokenizer(byte_level(models.BPE(vocab=entries, merges=merges)))
    wider = extended(base, ["abc!abc!abc!xy!xy"], 1)
    assert base.encode("abc") == [257, ord("c")]
    assert wider.encode("abc") == [259]
    assert wider.vocab_size == 261 and wider.token_bytes(260) == b"xy"


@pytest.mark.parametrize("special", ["[PAD]", END_OF_TEXT])
def test_special_tokens_beside_the_vocabulary_keep_their_ids(special: str) -> None:
    """Folders from elsewhere have such: their ids are counted from the size of the vocabulary."""
    specials = [END_OF_TEXT] if special == END_OF_TEXT else [END_OF_TEXT, special]
    base = Tokenizer(byte_level(models.BPE(vocab=byte_alphabet(), merges=[]), specials))
    wider = extended(base, chinese(50), 9)
    assert wider.end_of_text_id == base.end_of_text_id == 256
    n_old = base.vocab_size
    assert [wider.token_bytes(i) for i in range(n_old)] == [base.token_bytes(i) for i in range(n_old)]
    assert wider.vocab_size == n_old + 9 and len(wider.encode("单元格")) < 9


def test_what_cannot_be_given_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"too few pairs for 5000 new entries; they support \d+$"):
        extended(tokenizer, chinese(20), 5000)
    with pytest.raises(DataError, match=r"they support 0$"):
        extended(tokenizer, [], 1)
    with pytest.raises(DataError, match="not UTF-8"):
        extended(tokenizer, ["half \ud800"], 1)
    with pytest.raises(ConfigError, match="more than a tokenizer may have, 100,000"):
        extended(tokenizer, chinese(20), 100_000)
    with pytest.raises(ConfigError, match="at least one"):
        extended(tokenizer, chinese(20), 0)
