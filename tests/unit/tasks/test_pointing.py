"""Hints follow a text through what is copied, left out, put in or replaced; a memory finds like ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel

from wafergpt.errors import ConfigError
from wafergpt.tasks import pointing
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import HintFirst, Places, with_hints
from wafergpt.tasks.registry import make, settings_of
from wafergpt.tasks.task import Written
from wafergpt.tasks.translation import Hints, Translation

END = 256
TEXT = list(b"and he said unto them")


def after(written: bytes) -> Places:
    places = Places(TEXT, END)
    for token_id in written:
        places.read(token_id)
    return places


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
    assert after(written).hint == ord(expected)


def test_after_the_last_token_comes_the_end() -> None:
    assert after(bytes(TEXT)).hint == END
    assert after(bytes(TEXT[:-1])).hint == TEXT[-1]
    assert Places([], END).hint == END


def test_places_are_probabilities() -> None:
    for written in (b"and he", b"and he said", b"but x", b"zzzzzzzzzz" * 20):
        np.testing.assert_allclose(after(written).at.sum(), 1.0, atol=1e-12)


def test_moves_are_probabilities_that_end_at_the_end() -> None:
    for stay, on in (pointing.AFTER_COPY, pointing.AFTER_OTHER):
        moves = pointing._moves(20, stay, on)
        np.testing.assert_allclose(moves.sum(1), 1.0, atol=1e-12)
        assert (np.tril(moves, -1) == 0).all() and moves[-1, -1] == pytest.approx(1.0)
        assert moves[0, 0] == stay and moves[0, 1] == on


def test_each_token_stands_after_its_hint() -> None:
    assert with_hints(list(b"xbc"), Places(list(b"abc"), END)) == list(b"axbbcc")


def test_a_guide_forces_hints_and_leaves_the_rest_to_the_model() -> None:
    """What is written with it is what training shows: `with_hints` of the model's own tokens."""
    guide, said, new_ids = HintFirst(Places(TEXT, END)), list(b"and she"), []
    for token_id in said:
        logits = np.eye(1, END + 1, token_id, dtype=np.float32)[0]
        new_ids.append(int(guide(new_ids, logits).argmax()))
        assert guide(new_ids, logits) is logits
        new_ids.append(token_id)
    assert new_ids == with_hints(said, Places(TEXT, END))


def test_a_memory_finds_the_source_that_is_most_alike() -> None:
    memory = Memory(["Open a file", "Close the window", "Open a window"], ["A", "B", "C"])
    assert memory.nearest("open a window!") == "C"
    assert memory.nearest("Open a window") == "C" and memory.nearest("Open a window", itself=False) == "A"
    assert memory.nearest("close it") == "B"
    assert memory.nearest("nothing alike") == Memory([], []).nearest("x") == ""


class Repeating(RuleModel):
    """Repeats each hint, and ends after the hint of an end."""

    def write(self, prompts: Any, decoding: Any, guides: Any = ()) -> Any:
        self.longest, written = decoding.max_new_tokens, []
        for guide in guides:
            ids: list[int] = []
            while len(ids) < decoding.max_new_tokens and 256 not in ids:
                hint = int(guide(ids, np.zeros(257, np.float32)).argmax())
                ids += [hint, 256 if hint == ord("\n") else hint]
            nats = tuple([-9.0, -0.5] * (len(ids) // 2))
            written.append(
                Written(
                    text="",
                    n_tokens=len(ids),
                    log_probability=0.0,
                    token_ids=tuple(ids),
                    log_probabilities=nats,
                )
            )
        return written


PAIRS = [{"source": "red house", "target": "maison rouge"}, {"source": "blue sky", "target": "ciel bleu"}]


def answers(task: Translation, *sources: str) -> list[str]:
    records = [{"source": source} for source in sources]
    return [a.text for a in task.answer(Repeating(), records, task.decoding)]


def test_a_translation_follows_its_source_or_a_like_target() -> None:
    assert answers(Translation(hints=Hints.SOURCE), "blue skies", "a") == ["blue skies", "a"]
    remembering = Translation(hints=Hints.MEMORY).learn_from(PAIRS)
    assert answers(remembering, "blue skies", "unlike") == ["ciel bleu", ""]


def test_hints_are_neither_counted_nor_said_nor_part_of_the_confidence() -> None:
    task, model = Translation(hints=Hints.SOURCE), Repeating()
    decoding = replace(task.decoding, max_new_tokens=3)
    (answer,) = task.answer(model, [{"source": "thou"}], decoding)
    assert answer.text == "th" and model.longest == 6  # " th"
    assert answer.confidence == pytest.approx(math.exp(-0.5))
    (example,) = task.encode({"source": "thou", "target": "you"}, model.tokenizer, 99)
    told = "".join(chr(i) for i, c in zip(example.ids, example.counted, strict=True) if c and i < 256)
    assert told == " you" and example.n_counted == 5
    hints = model.tokenizer.decode(example.ids[example.counted.index(True) - 1 :: 2])
    assert hints[:2] == " t" and len(hints) == 5


def test_a_memory_does_not_tell_its_own_pair_in_training() -> None:
    task = Translation(hints=Hints.MEMORY).learn_from([*PAIRS, {"source": "red sky", "target": "ciel rouge"}])
    assert task.sources == ("red house", "blue sky", "red sky")
    assert make("translation", settings_of(task)) == task
    tokenizer = Repeating().tokenizer
    (example,) = task.encode(PAIRS[1], tokenizer, 99)
    assert tokenizer.decode(example.ids[example.counted.index(True) - 1 :: 2]).startswith(" ciel r")
    assert answers(task, "blue sky") == ["ciel bleu"], "in use it does"
    assert Translation(hints=Hints.SOURCE).learn_from(PAIRS).sources == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_beams": 2}, "n_beams = 2"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"stop": ("a",)}, "stop"),
    ],
)
def test_what_would_fall_on_hints_is_refused(changes: dict[str, Any], message: str) -> None:
    task = Translation(hints=Hints.SOURCE)
    with pytest.raises(ConfigError, match=message):
        task.answer(Repeating(), [{"source": "a"}], replace(task.decoding, **changes))


def test_settings_of_hints_are_checked() -> None:
    with pytest.raises(ConfigError, match="none, source, memory"):
        make("translation", {"hints": "both"})
    with pytest.raises(ConfigError, match="not as many"):
        make("translation", {"sources": ["a"]})
