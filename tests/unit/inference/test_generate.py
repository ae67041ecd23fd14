"""The generation loop with a model that says what we tell it: stops, windows, pieces, release."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.backends.backend import Capacity, Chunk, ChunkResult
from wafergpt.errors import ConfigError
from wafergpt.inference import text
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import FinishReason
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.text import Piece, StopTexts
from wafergpt.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.train(["abc"], 257)  # one token per byte, and end of text
GREEDY = {"temperature": 0.0}


class Parrot:
    """A backend that continues every prompt with the tokens of one script, and counts what it holds."""

    batch_invariant, d_model = True, 1

    def __init__(self, script: Sequence[int], max_seq_len: int = 1000, vocab_size: int = 257) -> None:
        self.script, self.max_seq_len, self.vocab_size = list(script), max_seq_len, vocab_size
        self.capacity = Capacity(page_tokens=10, n_pages=100)
        self.held: set[int] = set()
        self.n_said = 0
        self.seen: list[int] = []

    def open(self) -> int:
        self.held.add(7)
        return 7

    def fork(self, sequence: int, n_tokens: int) -> int:
        raise AssertionError("one sample needs no fork")

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        (chunk,) = chunks
        assert chunk.sequence in self.held and chunk.n_logits == 1
        self.seen += chunk.token_ids
        assert len(self.seen) < self.max_seq_len
        logits = np.zeros((1, self.vocab_size), np.float32)
        logits[0, self.script[self.n_said % len(self.script)]] = 50
        self.n_said += 1
        return [ChunkResult(logits=logits, hidden=None)]

    def release(self, sequence: int) -> None:
        self.held.remove(sequence)


def stream(model: Parrot, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> Iterator[Piece]:
    return text.stream(Engine(model), tokenizer, prompt, config)


def generate(model: Parrot, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> text.Generation:
    return text.generate(Engine(model), tokenizer, prompt, config)


def parrot(text: str, **options: int) -> Parrot:
    return Parrot(BYTES.encode(text), **options)


def test_length_then_finished() -> None:
    model = parrot("hello ")
    found = generate(model, BYTES, "say ", SamplingConfig(**GREEDY, max_new_tokens=8))
    assert (found.text, str(found), found.finish_reason) == ("hello he", "hello he", FinishReason.LENGTH)
    assert not found.window_full and found.n_prompt_tokens == 4
    assert found.token_ids == tuple(BYTES.encode("hello he"))
    assert model.seen == BYTES.encode("say hello h")  # the last token is not run
    assert not model.held


def test_end_of_text_ends_it() -> None:
    model = Parrot([*BYTES.encode("ab"), BYTES.end_of_text_id, *BYTES.encode("never")])
    found = generate(model, BYTES, "x", SamplingConfig(**GREEDY))
    assert (found.text, found.finish_reason) == ("ab", FinishReason.END_OF_TEXT)
    assert found.token_ids[-1] == BYTES.end_of_text_id


def test_an_empty_prompt_starts_a_document() -> None:
    model = parrot("a")
    generate(model, BYTES, "", SamplingConfig(max_new_tokens=1))
    assert model.seen == [BYTES.end_of_text_id]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("world",), "hello "),
        (("lo w",), "hel"),
        (("w", "o"), "hell"),
        (("worlds",), "hello worldhello "),  # three times nearly
        (("dh", "zz"), "hello worl"),
    ],
)
def test_stop_texts_are_cut_and_never_leak(stop: tuple[str, ...], expected: str) -> None:
    model = parrot("hello world")
    pieces = list(stream(model, BYTES, "x", SamplingConfig(**GREEDY, stop=stop, max_new_tokens=17)))
    shown = "".join(piece.text for piece in pieces)
    expected_stop = stop != ("worlds",)
    assert shown == expected
    assert pieces[-1].finish_reason == (FinishReason.STOP if expected_stop else FinishReason.LENGTH)
    assert not model.held


def test_text_held_back_for_a_stop_comes_at_the_end() -> None:
    pieces = list(
        stream(parrot("abc"), BYTES, "x", SamplingConfig(**GREEDY, stop=("bcd",), max_new_tokens=3))
    )
    assert [piece.text for piece in pieces] == ["a", "", "", "bc"]


def test_characters_arrive_whole() -> None:
    pieces = list(stream(parrot("é€😀"), BYTES, "x", SamplingConfig(**GREEDY, max_new_tokens=9)))
    assert [piece.text for piece in pieces] == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_a_character_cut_by_the_limit_is_marked() -> None:
    found = generate(parrot("é€"), BYTES, "x", SamplingConfig(**GREEDY, max_new_tokens=4))
    assert found.text == "é\ufffd"


def test_the_window_ends_it_and_says_so() -> None:
    found = generate(parrot("abc", max_seq_len=10), BYTES, "1234567", SamplingConfig(**GREEDY))
    assert (found.text, found.finish_reason, found.window_full) == ("abc", FinishReason.LENGTH, True)


def test_a_prompt_that_leaves_no_room_is_refused_at_once() -> None:
    model = parrot("a", max_seq_len=4)
    with pytest.raises(ConfigError, match="has 4 tokens, which leaves no room in the context window of 4"):
        stream(model, BYTES, "1234", SamplingConfig())
    assert not model.seen


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer has 257 entries, the model only 100"):
        stream(parrot("a", vocab_size=100), BYTES, "x", SamplingConfig())


def test_logits_beyond_the_tokenizer_are_never_chosen() -> None:
    model = Parrot([300], vocab_size=400)
    assert all(
        i < 257 for i in generate(model, BYTES, "x", SamplingConfig(max_new_tokens=20, seed=0)).token_ids
    )


def test_leaving_early_or_failing_frees_the_sequence() -> None:
    model = parrot("abc")
    pieces = stream(model, BYTES, "x", SamplingConfig(**GREEDY))
    next(pieces)
    assert model.held
    pieces.close()  # type: ignore[attr-defined]
    assert not model.held


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_texts_do_not_depend_on_how_the_text_is_cut(
    whole: str, stop: list[str], data: st.DataObject
) -> None:
    """Whatever the pieces, what is shown is the text before the first stop text to be complete."""
    detector, shown, rest = StopTexts(stop), "", whole
    stopped = False
    while rest and not stopped:
        n = data.draw(st.integers(1, len(rest)))
        piece, stopped = detector.push(rest[:n])
        shown, rest = shown + piece, rest[n:]
    shown += "" if stopped else detector.finish()
    assert not any(s in shown for s in stop)
    assert stopped == any(s in whole for s in stop)
    assert whole.startswith(shown)
    if not stopped:
        assert shown == whole
