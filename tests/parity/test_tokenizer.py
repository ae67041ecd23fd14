"""GPT-2's ids, encoded both of our ways, against tiktoken and Transformers on 100,000 different strings.

tiktoken is an independent implementation: its own pattern engine, its own merging. Transformers builds on the
library we use, but sets it up from the published files by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from varied_text import varied_texts
from wafergpt.assets.fetch import fetch
from wafergpt.errors import AssetError
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer, byte_alphabet
from wafergpt.tokenizer.encoder import Encoder

tiktoken = pytest.importorskip("tiktoken")

pytestmark = pytest.mark.assets

# tiktoken's own, from its openai_public.py.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
MIN_TEXTS = 100_000
BY_HAND = (
    "",
    "Hello world!",
    "Hello, how are you?",
    "In the beginning God created the heaven and the earth. It's done; they'll see we've I'M.",
    "    def f(x):\n\t\treturn {'a': [1, 22, 333]}  # ok\r\n\r\n\n",
    "naïve café Übergröße ŁÓDŹ ½ x² №5 “quoted” ‘single’ — dash…",
    "Γειά σου Κόσμε. Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "你好，世界。こんにちは、世界！안녕하세요 세계 ｆｕｌｌ　ｗｉｄｔｈ",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇨🇭 e\u0301 \u200bzero\u200dwidth\ufeff",
    "a\x00b\x1cc\x85d\xa0e\u2028f\u3000g   ",
    "=" * 300 + "A" * 300 + "7" * 300 + " " * 300 + "x",
    "word " * 20_000,
)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    try:
        return Tokenizer.gpt2()
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def oracle(gpt2: Tokenizer) -> tiktoken.Encoding:
    """tiktoken's ranks are the ids of the vocabulary; its own files are not needed, its algorithm is."""
    alphabet = byte_alphabet()
    ranks = {
        bytes(alphabet[c] for c in token): token_id
        for token, token_id in gpt2.inner.get_vocab().items()
        if token != END_OF_TEXT
    }
    return tiktoken.Encoding(name="gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [*BY_HAND, *varied_texts(107_000)]
    assert len(set(found)) >= MIN_TEXTS
    return found


@pytest.fixture(scope="module")
def expected(oracle: tiktoken.Encoding, texts: list[str]) -> list[list[int]]:
    return oracle.encode_ordinary_batch(texts, num_threads=1)  # type: ignore[no-any-return]


def differences(
    texts: Sequence[str], found: Sequence[Sequence[int]], expected: Sequence[list[int]]
) -> list[str]:
    assert len(texts) == len(found) == len(expected)
    triples = zip(texts, found, expected, strict=True)
    return [f"{text[:80]!r}: {list(ids)[:20]}, not {want[:20]}" for text, ids, want in triples if ids != want]


def test_ids_equal_tiktokens(gpt2: Tokenizer, texts: list[str], expected: list[list[int]]) -> None:
    assert sum(map(len, expected)) > 1_000_000
    assert not differences(texts, gpt2.encode_batch(texts), expected)[:5]


def test_ids_of_the_fast_encoder_equal_tiktokens(
    gpt2: Tokenizer, texts: list[str], expected: list[list[int]]
) -> None:
    encoder = Encoder(gpt2)
    found = [np.frombuffer(ids, encoder.dtype).tolist() for ids in encoder.encode_many(texts)]
    assert not differences(texts, found, expected)[:5]


def test_ids_equal_transformers(gpt2: Tokenizer, texts: list[str], expected: list[list[int]]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = fetch("gpt2-tokenizer")
    theirs = transformers.GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    found = theirs(texts, return_attention_mask=False)["input_ids"]
    assert not differences(texts, found, expected)[:5]


def test_every_text_comes_back(gpt2: Tokenizer, texts: list[str], expected: list[list[int]]) -> None:
    assert [text for text, ids in zip(texts, expected, strict=True) if gpt2.decode(ids) != text] == []


def test_a_wrong_tokenizer_is_caught(gpt2: Tokenizer, texts: list[str], expected: list[list[int]]) -> None:
    """The planted bugs: a space put before the text; pre-tokens not split."""
    from tokenizers import pre_tokenizers

    for options in ({"add_prefix_space": True}, {"add_prefix_space": False, "use_regex": False}):
        wrong = Tokenizer.from_bytes(gpt2.to_bytes())
        wrong.inner.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
        assert differences(texts[:200], wrong.encode_batch(texts[:200]), expected[:200])


def test_any_bytes(gpt2: Tokenizer, oracle: tiktoken.Encoding, texts: list[str]) -> None:
    """Cut anywhere, with noise between: the bytes come back, and characters are encoded as in a text."""
    rng = random.Random(3)
    never_text = (*range(0x80, 0xC2), *range(0xF5, 0x100))  # after a whole character
    for first, second in zip(texts[:4000:2], texts[1:4000:2], strict=True):
        noise = bytes(rng.choices(never_text, k=rng.randrange(1, 8)))
        whole = first.encode() + noise + second.encode()
        assert gpt2.encode_bytes(whole) == [
            *oracle.encode_ordinary(first),
            *oracle._encode_bytes(noise),  # nothing before it: one pre-token, as ours
            *oracle.encode_ordinary(second),
        ]
        for data in (whole, whole[rng.randrange(len(whole)) :], rng.randbytes(40)):
            assert gpt2.decode_bytes(gpt2.encode_bytes(data)) == data


def test_end_of_text_in_a_text_is_text(gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    """As tiktoken's encode_ordinary; Transformers would parse it, so it is told not to."""
    transformers = pytest.importorskip("transformers")
    folder = fetch("gpt2-tokenizer")
    theirs = transformers.GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    text = "a<|endoftext|> <|endoftext|>"
    assert gpt2.encode(text) == oracle.encode_ordinary(text)
    assert gpt2.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert gpt2.end_of_text_id in theirs(text)["input_ids"]


def test_gpt2_is_the_published_tokenizer(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50_257
    assert gpt2.end_of_text_id == 50_256
    assert gpt2.encode("Hello world!") == [15496, 995, 0]
    assert len(gpt2.encode("Hello, how are you?")) == 6  # the article's first listing
