"""A pointer follows a text through what is copied, left out, put in or replaced; a memory finds like ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel

from wafergpt.errors import ConfigError
from wafergpt.tasks import pointing
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import Places, Pointer
from wafergpt.tasks.registry import make, settings_of
from wafergpt.tasks.translation import Translation

END = 256
TEXT = list(b"and he said unto them")


def next_of(places: Places, written: bytes) -> int:
    """The token that the places expect most."""
    found = places.after(list(written))
    return int(np.bincount(places.ids, weights=found, minlength=END + 1).argmax())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"", "a"),
        (b"and he", " "),
        (b"and he sai", "d"),
        (b"and sai", "d"),  # three left out
        (b"and then he sai", "d"),  # five put in
        (b"and she sai", "d"),
        (b"but he sai", "d"),  # another word instead
    ],
)
def test_the_place_is_found_again(written: bytes, expected: str) -> None:
    assert next_of(Places(TEXT, END), written) == ord(expected)


def test_after_the_last_token_comes_the_end() -> None:
    places = Places(TEXT, END)
    assert next_of(places, bytes(TEXT)) == END
    assert next_of(places, bytes(TEXT[:-1])) == TEXT[-1]


def test_places_are_probabilities_and_do_not_depend_on_earlier_calls() -> None:
    """Beams share a pointer: another beginning is read anew."""
    places = Places(TEXT, END)
    for written in (b"and he", b"and he said", b"but x", b"and", b""):
        found = places.after(list(written))
        np.testing.assert_allclose(found.sum(), 1.0, atol=1e-12)
        np.testing.assert_array_equal(found, Places(TEXT, END).after(list(written)))


def test_moves_are_probabilities_that_end_at_the_end() -> None:
    for stay, on in (pointing.AFTER_COPY, pointing.AFTER_OTHER):
        moves = pointing._moves(20, stay, on)
        np.testing.assert_allclose(moves.sum(1), 1.0, atol=1e-12)
        assert (np.tril(moves, -1) == 0).all() and moves[-1, -1] == pytest.approx(1.0)
        assert moves[0, 0] == stay and moves[0, 1] == on


def test_the_mixture_is_what_it_says() -> None:
    """With share 0.4 of a text whose first token is 97: p = 0.6 softmax + 0.4 at 97."""
    logits = np.linspace(-3, 2, END + 1).astype(np.float32)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    found = np.exp(Pointer([(TEXT, 0.4)], END)([], logits).astype(np.float64))
    expected = 0.6 * p + 0.4 * (np.arange(END + 1) == ord("a"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 logarithms: |log p| 2^-24 relative
    two = np.exp(Pointer([(TEXT, 0.2), (list(b"b"), 0.3)], END)([], logits).astype(np.float64))
    np.testing.assert_allclose(two[[ord("a"), ord("b")]] - 0.5 * p[[97, 98]], [0.2, 0.3], rtol=1e-4)


def test_a_memory_finds_the_source_that_is_most_alike() -> None:
    memory = Memory(["Open a file", "Close the window", "Open a window"], ["A", "B", "C"])
    assert memory.nearest("open a window!") == ("C", pytest.approx(1.0))
    target, likeness = memory.nearest("close it")
    assert target == "B" and 0.3 < likeness < 1
    assert memory.nearest("nothing alike") == ("", 0.0)
    assert Memory([], []).nearest("x") == ("", 0.0)


class Guided(RuleModel):
    """Writes what its guide likes best, one token after the other, from flat logits."""

    def write(self, prompts: Any, decoding: Any, guides: Any = ()) -> Any:
        self.guided = list(guides)
        texts = []
        for guide in guides:
            ids: list[int] = []
            while guide is not None and (not ids or ids[-1] != END) and len(ids) < 50:
                ids.append(int(guide(ids, np.zeros(END + 1, np.float32)).argmax()))
            texts.append(self.tokenizer.decode(ids[:-1]))
        self._says = lambda prompt: texts.pop(0)
        return super().write(prompts, decoding)


PAIRS = [{"source": "red house", "target": "maison rouge"}, {"source": "blue sky", "target": "ciel bleu"}]


def test_a_translation_copies_its_source_or_a_like_target() -> None:
    model = Guided()
    asked = [{"source": "blue skies"}]
    assert [a.text for a in Translation(copy=0.5).answer(model, asked, Translation.decoding)] == [
        "blue skies"
    ]
    remembering = Translation(memory=0.9).learn_from(PAIRS)
    assert [a.text for a in remembering.answer(model, asked, Translation.decoding)] == ["ciel bleu"]
    Translation().learn_from(PAIRS).answer(model, asked, Translation.decoding)
    assert model.guided == [None]
    remembering.answer(model, [{"source": "unlike"}], Translation.decoding)
    assert model.guided == [None], "nothing alike: the model alone"


def test_a_memory_is_kept_with_the_task_and_only_then() -> None:
    task = Translation(memory=0.5).learn_from(PAIRS)
    assert task.sources == ("red house", "blue sky") and make("translation", settings_of(task)) == task
    assert Translation(copy=0.5).learn_from(PAIRS).sources == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"copy": 0.6, "memory": 0.4}, "below 1"),
        ({"copy": -0.1}, "copy"),
        ({"memory": float("nan")}, "memory"),
        ({"sources": ["a"]}, "not as many"),
    ],
)
def test_shares_that_leave_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("translation", settings)
