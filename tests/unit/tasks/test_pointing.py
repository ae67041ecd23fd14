"""Hints follow a text through what is copied, left out, put in or replaced; a memory finds like ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel

from wafergpt.errors import ConfigError
from wafergpt.tasks import pointing
from wafergpt.tasks.memory import Memory
from wafergpt.tasks.pointing import COPIES, Hinted, Places, Told, hints_for
from wafergpt.tasks.registry import make, settings_of
from wafergpt.tasks.task import NO_HINT
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
    assert after(written).hint[0] == ord(expected)


def test_after_the_last_token_comes_the_end() -> None:
    assert after(bytes(TEXT)).hint[0] == END
    assert after(bytes(TEXT[:-1])).hint[0] == TEXT[-1]
    assert Places([], END).hint[0] == END


def test_a_writer_who_leaves_the_text_is_lost_and_found() -> None:
    """The sum over places is the belief that the text is followed."""
    follows = [after(written).at.sum() for written in (b"and he", b"and he z", b"and he zzzz", b"z" * 200)]
    assert 1.0 > follows[0] > follows[1] > follows[2] > follows[3] > 0.0 and follows[0] > 0.9
    assert follows[3] < 0.1
    assert after(b"z" * 200 + b"said").at.sum() > 0.9


def test_a_hint_weighs_as_a_mixture() -> None:
    """A model that gives the hint its usual chance becomes (1 - p) model + p copy, p = `COPIES` at first."""
    for chance in (0.3, 1e-3):
        token_id, nats = Places(TEXT, END, lambda _, c=chance: c).hint  # type: ignore[misc]
        logits = np.log(np.array([chance, 1 - chance])) + np.array([nats, 0.0])
        found = np.exp(logits)[0] / np.exp(logits).sum()
        assert token_id == TEXT[0] and found == pytest.approx((1 - COPIES) * chance + COPIES)
    asked: list[int] = []
    assert Places(TEXT, END, lambda i: asked.append(i) or 0.5).hint[0] == TEXT[0] and asked == [TEXT[0]]  # type: ignore[func-returns-value]


def test_moves_are_probabilities_that_end_at_the_end() -> None:
    for stay, on in (pointing.AFTER_COPY, pointing.AFTER_OTHER):
        moves = pointing._moves(20, stay, on)
        np.testing.assert_allclose(moves.sum(1), 1.0, atol=1e-12)
        assert (np.tril(moves, -1) == 0).all() and moves[-1, -1] == pytest.approx(1.0)
        assert moves[0, 0] == stay and moves[0, 1] == on


def test_hints_stand_before_their_tokens() -> None:
    hints = hints_for(list(b"xbc"), Places(list(b"abc"), END))
    assert [token_id for token_id, _ in hints] == list(b"abc")
    assert hints[0][1] > hints[1][1] < hints[2][1]  # unsure after another token
    assert [i for i, _ in hints_for([*b"abc", END], Places(list(b"abc"), END))] == [*b"abc", END]


def test_a_guide_raises_the_hint_of_training() -> None:
    """Asked in order, out of order and for another beginning, as beams do; given logits stay as they are."""
    said = list(b"and she said")
    guide, logits = Hinted(Places(TEXT, END)), np.zeros(END + 1, np.float32)
    hints = hints_for(said, Places(TEXT, END))
    for n in (0, 1, 2, 5, 3, 4, 9, 0, 11):
        changed = guide(said[:n], logits)
        token_id, nats = hints[n]
        assert changed.dtype == np.float32 and changed.sum() == changed[token_id] == np.float32(nats) > 0
        guide(list(b"but"), logits)
    assert not logits.any()
    told = Told([*hints, NO_HINT])
    assert told(said[:5], logits).tolist() == guide(said[:5], logits).tolist()
    assert told(said, logits).tolist() == logits.tolist()


def test_a_memory_finds_the_source_that_is_most_alike() -> None:
    memory = Memory(["Open a file", "Close the window", "Open a window"], ["A", "B", "C"])
    assert memory.nearest("open a window!") == "C"
    assert memory.nearest("Open a window") == "C" and memory.nearest("Open a window", itself=False) == "A"
    assert memory.nearest("close it") == "B"
    assert memory.nearest("nothing alike") == Memory([], []).nearest("x") == ""


class Following(RuleModel):
    """Takes every hint: its own logits are flat."""

    def write(self, prompts: Any, decoding: Any, guides: Any = ()) -> Any:
        self.guides, texts = list(guides), []
        for guide in guides:
            ids: list[int] = []
            while guide is not None and END not in ids:
                ids.append(int(guide(ids, np.zeros(END + 1, np.float32)).argmax()))
            texts.append(self.tokenizer.decode(ids[:-1]))
        self._says = lambda prompt: texts.pop(0)
        return super().write(prompts, decoding)


PAIRS = [{"source": "red house", "target": "maison rouge"}, {"source": "blue sky", "target": "ciel bleu"}]


def answers(task: Translation, *sources: str) -> list[str]:
    records = [{"source": source} for source in sources]
    return [a.text for a in task.answer(Following(), records, task.decoding)]


def test_a_translation_follows_its_source_or_a_like_target() -> None:
    assert answers(Translation(hints=Hints.SOURCE), "blue skies", "a") == ["blue skies", "a"]
    remembering = Translation(hints=Hints.MEMORY).learn_from(PAIRS)
    assert answers(remembering, "blue skies", "unlike") == ["ciel bleu", ""]  # nothing alike: no guide
    assert answers(Translation(), "blue skies") == [""]


def test_what_is_learned_with_is_what_is_written_with() -> None:
    task, model = Translation(hints=Hints.SOURCE, follow=1.5), Following()
    (example,) = task.encode({"source": "thou", "target": "you"}, model.tokenizer, 99)
    first = example.counted.index(True)
    assert example.hints[:first] == (NO_HINT,) * first and len(example.hints) == len(example.ids)
    task.answer(model, [{"source": "thou"}], task.decoding)
    logits = np.zeros(END + 1, np.float32)
    for n in range(len(example.ids) - first):
        changed = model.guides[0](example.ids[first : first + n], logits)
        token_id, nats = example.hints[first + n]
        assert int(changed.argmax()) == token_id
        assert changed.max() == pytest.approx(nats + 1.5, rel=1e-6)


def test_a_memory_does_not_tell_its_own_pair_in_training() -> None:
    task = Translation(hints=Hints.MEMORY).learn_from([*PAIRS, {"source": "red sky", "target": "ciel rouge"}])
    assert task.sources == ("red house", "blue sky", "red sky")
    assert make("translation", settings_of(task)) == task
    tokenizer = Following().tokenizer
    (example,) = task.encode({"source": "blue sky", "target": "ciel rouge"}, tokenizer, 99)
    hints = [i for i, nats in example.hints if nats]
    assert tokenizer.decode(hints[:-1]) == " ciel rouge" and hints[-1] == END
    assert answers(task, "blue sky") == ["ciel bleu"], "in use it does"
    long = Translation(hints=Hints.MEMORY).learn_from(PAIRS * 50)._places(PAIRS[0], tokenizer)
    short = task._places(PAIRS[0], tokenizer)
    assert long is not None and short is not None and long.hint[1] < short.hint[1], (
        "a commoner token gains less"
    )
    (alone,) = task.encode({"source": "?", "target": "x"}, tokenizer, 99)
    assert set(alone.hints) == {NO_HINT}
    assert Translation(hints=Hints.SOURCE).learn_from(PAIRS).sources == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hints": "both"}, "none, source, memory"),
        ({"follow": 1.0}, "needs hints="),
        ({"hints": "source", "follow": float("nan")}, "follow"),
        ({"sources": ["a"]}, "not as many"),
    ],
)
def test_settings_of_hints_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("translation", settings)
