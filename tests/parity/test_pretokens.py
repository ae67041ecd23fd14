"""Our two ways to GPT-2's ids against the library and against tiktoken, the independent implementation."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tokenizers import pre_tokenizers

from wafergpt.errors import AssetError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import Encoder
from wafergpt.tokenizer.pretokens import is_stable, split, stable_code_points

LIBRARY = pre_tokenizers.ByteLevel(add_prefix_space=False)


def library_split(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in LIBRARY.pre_tokenize_str(text)]


def test_every_stable_code_point_is_split_as_by_the_library() -> None:
    """Beside a letter, a number, a symbol and a space each class shows; about 50,000 code points."""
    codes = [code for code, _ in stable_code_points()]
    assert len(codes) > 48_000
    for start in range(0, len(codes), 64):
        text = "".join(
            f"\n\na{chr(c)}b1{chr(c)}2.{chr(c)}, {chr(c)} '{chr(c)}" for c in codes[start : start + 64]
        )
        assert is_stable(text)
        assert split(text) == library_split(text)


def test_a_wrong_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: Python's own \\s, which differs in U+001C to U+001F."""
    import re

    from wafergpt.tokenizer import pretokens

    wrong = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+")
    monkeypatch.setattr(pretokens, "_patterns", lambda: (wrong, wrong))
    assert split("a\x1c\x1cb") != library_split("a\x1c\x1cb")


def varied_texts() -> Iterator[str]:
    yield from (
        "Hello world!",
        "In the beginning God created the heaven and the earth. It's done; they'll see we've I'M.",
        "    def f(x):\n\t\treturn {'a': [1, 22, 333]}  # ok\r\n\r\n\n",
        "naïve café Übergröße ŁÓDŹ ½ x² №5 “quoted” ‘single’ — dash…",
        "Γειά σου Κόσμε. Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया",
        "你好，世界。こんにちは、世界！안녕하세요 세계 ｆｕｌｌ　ｗｉｄｔｈ",
        "😀👩‍👩‍👧‍👦🏳️‍🌈🇨🇭 e\u0301 \u200bzero\u200dwidth\ufeff",
        "a\x00b\x1cc\x85d\xa0e\u2028f\u3000g   ",
        "<|endoftext|> <|endoftext|>",
        "=" * 300 + "A" * 300 + "7" * 300 + " " * 300 + "x",
    )
    rng = random.Random(0)
    pool = (
        [chr(c) for c in range(0x20, 0x250)] + list(" \n\t'") * 30 + [chr(c) for c in range(0x1F300, 0x1F340)]
    )
    for _ in range(200):
        yield "".join(rng.choice(pool) for _ in range(rng.randrange(1, 200)))
    for _ in range(50):
        codes = (rng.randrange(0x110000) for _ in range(50))
        yield "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)  # surrogates are no text


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    try:
        return Tokenizer.gpt2()
    except AssetError as error:
        pytest.skip(str(error))


@pytest.mark.assets
def test_gpt2_ids_equal_tiktokens(gpt2: Tokenizer) -> None:
    import tiktoken

    from wafergpt.assets.fetch import fetch
    from wafergpt.tokenizer.bpe import byte_alphabet

    # tiktoken's ranks are the ids of the vocabulary; its own files are not needed, its algorithm is.
    alphabet = byte_alphabet()
    vocabulary = gpt2.inner.get_vocab()
    ranks = {
        bytes(alphabet[c] for c in token): token_id
        for token, token_id in vocabulary.items()
        if token_id != gpt2.end_of_text_id
    }
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    oracle = tiktoken.Encoding(name="gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    encoder = Encoder(gpt2)
    n_tokens = 0
    for text in varied_texts():
        expected = oracle.encode_ordinary(text)
        assert gpt2.encode(text) == expected
        assert encoder.encode(text).tolist() == expected
        assert gpt2.decode(expected) == text
        n_tokens += len(expected)
    assert n_tokens > 20_000
    assert fetch("gpt2-tokenizer").is_dir()


@pytest.mark.assets
def test_gpt2_ids_equal_transformers(gpt2: Tokenizer) -> None:
    from transformers import GPT2Tokenizer

    from wafergpt.assets.fetch import fetch

    folder = fetch("gpt2-tokenizer")
    oracle = GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    for text in varied_texts():
        if "<|endoftext|>" not in text:  # there our rule differs on purpose: text stays text
            assert gpt2.encode(text) == oracle.encode(text)


@pytest.mark.assets
def test_gpt2_is_the_published_tokenizer(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50_257
    assert gpt2.end_of_text_id == 50_256
    assert gpt2.encode("Hello world!") == [15496, 995, 0]
