"""Translation, questions, chat, writing: what counts, what is asked, what is refused; tasks as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_lab import RuleModel, byte_tokenizer

from wafergpt.errors import ConfigError, DataError
from wafergpt.tasks.chat import Chat
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.qa import Method, QuestionAnswering
from wafergpt.tasks.registry import TASKS, make, settings_of
from wafergpt.tasks.shared_words import shared_rarity
from wafergpt.tasks.task import Encoded, Unfit, fill
from wafergpt.tasks.translation import Translation
from wafergpt.tasks.writing import Kind, Writing

TOKENIZER = byte_tokenizer()


def told(example: Encoded) -> str:
    """What counts, as text; `|` for an end of text."""
    ids = [i for i, counts in zip(example.ids, example.counted, strict=True) if counts]
    return "".join("|" if i == 256 else chr(i) for i in ids)


def whole(example: Encoded) -> str:
    return "".join("|" if i == 256 else TOKENIZER.decode([i]) for i in example.ids)


def test_translation_learns_the_target_only() -> None:
    task = Translation(template="{source} =")
    (example,) = task.encode({"source": "thou art", "target": "you are"}, TOKENIZER, 64)
    assert whole(example) == "|thou art = you are|" and told(example) == " you are|"
    with pytest.raises(Unfit, match="longer than the window"):
        task.encode({"source": "thou art", "target": "you are"}, TOKENIZER, len(example.ids) - 2)
    with pytest.raises(Unfit, match="empty"):
        task.encode({"source": "thou art", "target": "  "}, TOKENIZER, 64)


def test_what_is_trained_on_is_what_is_asked() -> None:
    """The prompt in use is the beginning of the training example, token by token."""
    asked: list[tuple[int, ...]] = []

    class Watching(RuleModel):
        def write(self, prompts: Any, decoding: Any, guides: Any = ()) -> Any:
            asked.extend(prompts)
            return super().write(prompts, decoding)

    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    record: dict[str, Any] = {
        "source": "a", "target": "b", "question": "q?", "context": "c d", "answers": "d", "messages": chat,
        "text": "some text", "title": "t",
    }  # fmt: skip
    tasks = [Translation(), QuestionAnswering(method=Method.GENERATIVE), Chat(), Writing(kind=Kind.TITLE)]
    for task in tasks:
        task.answer(Watching(), [record], task.decoding)
        (example,) = task.encode(record, TOKENIZER, 256)
        prompt = tuple(i for i, counts in zip(example.ids, example.counted, strict=True) if not counts)
        assert prompt == asked.pop(), task.name


def test_a_text_in_braces_is_no_place() -> None:
    assert fill("{source} =", {"source": "{target}"}) == "{target} ="


SQUAD = {
    "question": "Who?",
    "context": "Ünder Ada met Bob.",
    "answers": {"text": ["Bob", "met Bob"], "answer_start": [14, 10]},
}


def test_the_span_is_where_the_answer_stands() -> None:
    task = QuestionAnswering()
    (example,) = task.encode(SQUAD, TOKENIZER, 64)
    first, last, passage = example.span
    assert TOKENIZER.decode(example.ids[first : last + 1]) == "Bob"
    assert TOKENIZER.decode(example.ids[passage:]) == SQUAD["context"]


@pytest.mark.parametrize(
    "answers", ["Bob", ["Bob"], [{"text": "Bob", "answer_start": 14}], {"text": ["Bob"]}]
)
def test_every_usual_form_of_answers(answers: Any) -> None:
    (example,) = QuestionAnswering().encode({**SQUAD, "answers": answers}, TOKENIZER, 64)
    first, last, _ = example.span
    assert TOKENIZER.decode(example.ids[first : last + 1]) == "Bob"


def test_an_answer_that_is_not_in_the_passage() -> None:
    with pytest.raises(Unfit, match="not in the passage"):
        QuestionAnswering().encode({**SQUAD, "answers": "Eve"}, TOKENIZER, 64)
    with pytest.raises(DataError, match="answers must be"):
        QuestionAnswering().encode({**SQUAD, "answers": 3}, TOKENIZER, 64)


def test_the_likeliest_stretch_is_the_answer() -> None:
    """First before last, not longer than allowed, the confidence its share of all pairs' products."""
    context = "abcdef"

    def states(ids: tuple[int, ...]) -> np.ndarray:
        rows = np.zeros((len(ids), 2), np.float32)
        at = len(ids) - len(context)
        rows[at + 4, 0] = 9.0  # the likeliest first token stands after ...
        rows[at + 1, 0] = 8.0
        rows[at + 2, 1] = 9.0  # ... the likeliest last one
        return rows

    head = {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    task = QuestionAnswering()
    record = {"question": "?", "context": context, "answers": ""}
    (answer,) = task.answer(RuleModel(head=head, states=states), [record], task.decoding)
    assert (answer.text, answer.details) == ("bc", {"start": 1, "end": 3})
    p_first = np.exp(8) / (np.exp(9) + np.exp(8) + 4)
    p_last = np.exp(9) / (np.exp(9) + 5)
    assert answer.confidence == pytest.approx(p_first * p_last)
    (short,) = QuestionAnswering(max_answer_tokens=1).answer(
        RuleModel(head=head, states=states), [record], task.decoding
    )
    assert len(short.text) == 1
    with pytest.raises(ConfigError, match=r"a question has 13 tokens .* no room in the context window of 8"):
        task.answer(RuleModel(head=head, states=states, window=8), [record], task.decoding)


@pytest.mark.parametrize("window", [40, 256])
def test_words_shared_with_the_question_lead_to_a_sentence(window: int) -> None:
    """A head that finds any number as good reads the one whose sentence says what is asked."""
    context = "Café opens 7. The red cafés of Rome closed 9. We met 5."

    def states(ids: tuple[int, ...]) -> np.ndarray:
        digit = [[float(chr(i).isdigit()) * 9.0 if i < 256 else 0.0] * 2 for i in map(byte_of, ids)]
        return np.array(digit, np.float32)

    def byte_of(i: int) -> int:
        return TOKENIZER.token_bytes(i)[0] if i != TOKENIZER.end_of_text_id else 256

    head = {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    model = RuleModel(head=head, states=states, window=window)

    def said(question: str, **settings: float) -> str:
        task = QuestionAnswering(max_answer_tokens=1, **settings)  # type: ignore[arg-type]
        record = {"question": question, "context": context, "answers": ""}
        return task.answer(model, [record], task.decoding)[0].text

    assert said("Rome closing?", shared_words=1.0) == "9"
    assert said("when met?", shared_words=1.0) == "5"
    assert said("when met 5?", shared_words=9.0) != "5"  # a word of the question is not its answer
    assert said("Rome closing?") == said("when met?") == "7"  # without it the question is not looked at
    assert said("Paris?", shared_words=1.0) == "7"
    with pytest.raises(ConfigError, match=r"shared_words = -1"):
        QuestionAnswering(shared_words=-1.0)
    with pytest.raises(ConfigError, match=r"shared_words = 1\.0 .* needs method=extractive"):
        QuestionAnswering(shared_words=1.0, method=Method.GENERATIVE)  # it would do nothing


def test_what_shared_words_add_is_learned_with() -> None:
    """The example holds what reading adds, token by token, also of a piece of a passage."""
    task = QuestionAnswering(shared_words=0.5)
    record = {**SQUAD, "question": "Whom met she?"}
    (example,) = task.encode(record, TOKENIZER, 64)
    passage = TOKENIZER.encode(SQUAD["context"])
    read = task._added(record, passage, TOKENIZER)
    assert read.max() > 0 and example.added == tuple(read.tolist())
    (piece,) = task.encode(record, TOKENIZER, len(example.ids) - 4)
    assert len(piece.added) == len(piece.ids) - piece.span[2] and piece.added == example.added[4:]
    assert QuestionAnswering().encode(record, TOKENIZER, 64)[0].added == ()


def test_rarity_of_shared_words() -> None:
    passage = "A cat sat. A dog sat down. It ran"
    found = shared_rarity("Did the CATS sat?", passage)
    twice, once = np.log(4 / 2.5), np.log(4 / 1.5)  # in two of three sentences, in one
    assert len(found) == len(passage)
    assert found[0] == pytest.approx(twice)  # "cat" and "cats" are too short to agree
    assert shared_rarity("Did the cat sit?", passage)[0] == pytest.approx(once)
    assert found[passage.index("sat")] == 0.0 and found[passage.index("down")] == pytest.approx(twice)
    assert not found[passage.index("It") :].any()
    assert shared_rarity("?", "").shape == (0,)


LONG = "the cat saw a dog and the dog saw a big red bird and flew"


@pytest.mark.parametrize("window", [24, 25, 33, 200])
def test_a_passage_longer_than_the_window_is_read_in_pieces(window: int) -> None:
    """Wherever the pieces are cut, the stretch is found where it stands."""

    def states(ids: tuple[int, ...]) -> np.ndarray:
        assert len(ids) <= window
        said = "".join(TOKENIZER.decode([i])[:1] for i in ids)  # a character for each token
        rows = np.zeros((len(ids), 2), np.float32)
        for word, column, at in (("big", 0, 0), ("red", 1, 2)):
            if word in said:
                rows[said.index(word) + at, column] = 20.0
        return rows

    head = {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    task = QuestionAnswering()
    record = {"question": "?", "context": LONG, "answers": ""}
    (answer,) = task.answer(RuleModel(head=head, states=states, window=window), [record], task.decoding)
    assert (answer.text, answer.details["start"]) == ("big red", LONG.index("big red"))
    assert 0.2 < answer.confidence <= 1.0


def test_of_a_long_passage_the_piece_around_the_answer_is_learned() -> None:
    record = {"question": "?", "context": LONG, "answers": "big red"}
    (example,) = QuestionAnswering().encode(record, TOKENIZER, 33)
    first, last, passage = example.span
    assert len(example.ids) == 33 and passage == 13
    assert TOKENIZER.decode(example.ids[first : last + 1]) == "big red"
    assert min(first - passage, 32 - last) >= 3  # not at the edge
    with pytest.raises(Unfit, match="longer than the window"):
        QuestionAnswering().encode(record, TOKENIZER, 18)  # the answer has seven tokens, five fit
    (whole,) = QuestionAnswering().encode(record, TOKENIZER, 13 + len(LONG))
    assert TOKENIZER.decode(whole.ids[passage:]) == LONG


def test_squad_scores() -> None:
    task = QuestionAnswering(method=Method.GENERATIVE)
    answers = task.answer(RuleModel(lambda prompt: " the met Bob!"), [SQUAD], task.decoding)
    assert task.score(answers, [SQUAD]) == {"exact_match": 1.0, "f1": 1.0}


CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"from": "human", "value": "bye"},
    {"from": "gpt", "value": "farewell"},
    {"role": "user", "content": "?"},
]


def test_chat_counts_the_answers_and_their_ends_only() -> None:
    (example,) = Chat().encode({"messages": CONVERSATION}, TOKENIZER, 200)
    assert whole(example) == "|Be kind.\nUser: hi\nAssistant: hello|User: bye\nAssistant: farewell|"
    assert told(example) == " hello| farewell|"


def test_chat_adds_its_own_system_words() -> None:
    (example,) = Chat(system="Hush.").encode({"messages": CONVERSATION[1:3]}, TOKENIZER, 200)
    assert whole(example) == "|Hush.\nUser: hi\nAssistant: hello|"


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        (CONVERSATION[:2], Unfit, "without an answer"),
        ([], Unfit, "empty"),
        ([{"role": "asistant", "content": "x"}], DataError, "did you mean 'assistant'"),
        ([{"role": "user"}], DataError, "'role' and 'content'"),
        (3, DataError, "a list of"),
    ],
)
def test_chat_refuses(messages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Chat().encode({"messages": messages}, TOKENIZER, 200)


def test_a_long_text_becomes_windows_that_predict_every_token_once() -> None:
    examples = Writing().encode({"text": "abcdefgh"}, TOKENIZER, 4)
    assert [whole(example) for example in examples] == ["|abcd", "defgh", "h|"]
    assert "".join(told(example) for example in examples) == "abcdefgh|"


def test_rewriting_names_the_style() -> None:
    record = {"text": "a", "target": "b", "style": "a pirate"}
    (example,) = Writing(kind=Kind.REWRITE).encode(record, TOKENIZER, 64)
    assert whole(example) == "|a\nIn the style of a pirate: b|" and told(example) == " b|"


def test_a_text_is_continued_from_its_first_half() -> None:
    task, record = Writing(), {"text": "one two three four"}
    assert task.question(record)["text"] == "one two" and task.target(record) == "three four"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_comes_back_from_plain_data(name: str) -> None:
    settings = {"labels": ["a", "b"]} if name == "classification" else {}
    task = make(name, settings)
    assert make(name, settings_of(task)) == task
    assert task.name == name


def test_other_names_and_wrong_ones() -> None:
    assert isinstance(make("classify"), Classification)
    with pytest.raises(ConfigError, match="unknown task 'tranlation'; did you mean 'translation'"):
        make("tranlation")
    with pytest.raises(ConfigError, match=r"unknown config key 'qa.methd'; did you mean 'method'"):
        make("qa", {"methd": "x"})


def test_a_prompt_that_leaves_no_room() -> None:
    for task, record in (
        (Translation(), {"source": "x" * 50}),
        (Chat(), {"messages": "x" * 50}),
        (Writing(), {"text": "x" * 50}),
    ):
        with pytest.raises(ConfigError, match="leaves no room in the context window of 20"):
            task.answer(RuleModel(window=20), [record], task.decoding)
