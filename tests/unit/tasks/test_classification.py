"""Classification: labels, prompts, both methods, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from task_lab import RuleModel, byte_tokenizer

from wafergpt.errors import ConfigError, DataError
from wafergpt.tasks.classification import Classification, Method, label_of
from wafergpt.tasks.task import Answer, Unfit

TOKENIZER = byte_tokenizer()
RECORDS = [{"text": "fine", "label": "good"}, {"text": "awful", "label": "bad"}]


def test_labels_come_from_training_in_a_fixed_order() -> None:
    assert Classification().learn_from(RECORDS).labels == ("bad", "good")
    assert Classification(labels=("good", "bad")).learn_from(RECORDS).labels == ("good", "bad")
    assert [label_of(value) for value in (3, 3.0, True, " x ")] == ["3", "3", "true", "x"]


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="only the label 'good'; a classifier needs at least two"):
        Classification().learn_from(RECORDS[:1])


def test_a_label_that_training_did_not_know() -> None:
    task = Classification().learn_from(RECORDS)
    with pytest.raises(DataError, match="the label 'god' is not one of training's: bad, good; did you mean"):
        task.score([Answer(text="bad", confidence=1.0)], [{"text": "x", "label": "god"}])


def test_the_head_reads_the_whole_text_and_nothing_after() -> None:
    (example,) = Classification(labels=("bad", "good")).encode(RECORDS[0], TOKENIZER, 16)
    assert example.ids == (256, *b"fine") and example.label == 1 and example.n_positions == 5


def test_likelihood_learns_the_label_and_its_end() -> None:
    task = Classification(labels=("bad", "good"), method=Method.LIKELIHOOD)
    (example,) = task.encode(RECORDS[0], TOKENIZER, 64)
    told = [i for i, counts in zip(example.ids, example.counted, strict=True) if counts]
    assert told == [*b" good", 256] and example.ids[:5] == (256, *b"fine")
    assert not example.counted[0]


def test_a_text_too_long_is_left_out_or_cut() -> None:
    task = Classification(labels=("bad", "good"))
    with pytest.raises(Unfit, match="longer than the window"):
        task.encode(RECORDS[1], TOKENIZER, 4)
    (cut,) = Classification(labels=("bad", "good"), cut=True).encode(RECORDS[1], TOKENIZER, 4)
    assert cut.ids == (256, *b"awf")
    with pytest.raises(ConfigError, match=r"a text has 6 tokens .* more than the context window's 4"):
        task.answer(RuleModel(window=4), RECORDS[1:], task.decoding)


@pytest.mark.parametrize("cut", [4, 9])
def test_a_cut_keeps_what_comes_after_the_text(cut: int) -> None:
    task = Classification(labels=("bad", "good"), method=Method.LIKELIHOOD, template="{text}:", cut=True)
    (example,) = task.encode({"text": "a" * 50, "label": "bad"}, TOKENIZER, cut + 6)
    prompt = [i for i, counts in zip(example.ids, example.counted, strict=True) if not counts]
    assert prompt[-1] == ord(":") and len(example.ids) <= cut + 7


def test_the_head_answers_with_calibrated_probabilities() -> None:
    head = {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    states = lambda ids: np.array([[0, 0], [2.0, 0.0]], np.float32)  # noqa: E731
    model = RuleModel(head=head, states=states)
    answers = []
    for temperature in (1.0, 2.0):
        task = Classification(labels=("bad", "good"), temperature=temperature)
        answers += task.answer(model, RECORDS[:1], task.decoding)
    assert [answer.text for answer in answers] == ["bad", "bad"]
    expected = [1 / (1 + np.exp(-2.0 / t)) for t in (1.0, 2.0)]
    assert [answer.confidence for answer in answers] == pytest.approx(expected)
    assert sum(answers[0].details["probabilities"].values()) == pytest.approx(1.0)


def test_likelihood_answers_with_the_likelier_name() -> None:
    task = Classification(labels=("bad", "good"), method=Method.LIKELIHOOD)
    model = RuleModel(likely=lambda told: -1.0 if told == " good" else -3.0)
    (answer,) = task.answer(model, RECORDS[:1], task.decoding)
    assert answer.text == "good" and answer.confidence == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_a_model_without_a_head() -> None:
    task = Classification(labels=("bad", "good"))
    with pytest.raises(ConfigError, match="has no head: fine-tune it"):
        task.answer(RuleModel(states=lambda ids: np.zeros((1, 2), np.float32)), RECORDS, task.decoding)


@pytest.mark.parametrize("template", ["no place", "{text} {text}", "{text} {other}"])
def test_a_wrong_template(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        Classification(template=template)
