"""Data sets to fine-tune on: read from tiny files made here, split without leaks, the same every time."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wafergpt.assets import labelled
from wafergpt.assets.labelled import DATASETS, SPLITS, load, load_all, split_records
from wafergpt.assets.readers import bible, classified, help_pages, intents, questions, speech
from wafergpt.errors import AssetError

COLUMNS = {
    "classification": {"text", "label"},
    "translation": {"source", "target"},
    "qa": {"question", "context", "answers"},
    "chat": {"messages"},
    "writing": {"text"},
}


def leaks(splits: dict[str, list[dict[str, Any]]], key: Any) -> list[str]:
    """What two splits share: groups, or sources."""
    found = []
    for first, second in (("train", "test"), ("train", "validation"), ("validation", "test")):
        for of in (lambda record: (record["group"],), key):
            both = {x for r in splits[first] for x in of(r)} & {x for r in splits[second] for x in of(r)}
            found += [f"{first}/{second}: {x}" for x in both]
    return found


# -- readers


def test_headlines(tmp_path: Path) -> None:
    lines = [
        {
            "input": [{"role": "system", "content": "0 or 1"}, {"role": "user", "content": f" {text}"}],
            "ideal": i,
        }
        for text, i in (("moon resigns", "1"), ("tax bill passes", "0"))
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [(r["text"], r["label"]) for r in classified.headlines(tmp_path)]
    assert found == [("moon resigns", "sarcastic"), ("tax bill passes", "serious")]


def test_film_sentences_that_raters_disagree_about_are_left_out(tmp_path: Path) -> None:
    rows = b"1\t2.5\tA  joy.\r\n2\t-0.4\tSo so.\r\n3\t-0.5\tA bore.\r\n"
    with tarfile.open(tmp_path / "hutto_ICWSM_2014.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        info.size = len(rows)
        tar.addfile(info, io.BytesIO(rows))
    found = [(r["text"], r["label"]) for r in classified.film_sentences(tmp_path)]
    assert found == [("A joy.", "positive"), ("A bore.", "negative")]


HOUSE = {
    "expansion_rules": {"the": "(the|my)"},
    "lists": {
        "level": {"range": {"from": 10, "to": 30, "step": 10}},
        "state": {"values": [{"in": "o(n|pen)", "out": "on"}]},
    },
    "intents": {
        "HassOn": {"data": [{"sentences": ["(turn;on) [<the>] {name:x}"], "slots": {"domain": "lock"}}]},
        "HassSet": {"data": [{"sentences": ["set it to {level:y}", "same"]}]},
        "HassAsk": {"data": [{"sentences": ["is it {state}", "same"]}]},
    },
}


def test_intents_expand_their_templates(tmp_path: Path) -> None:
    (tmp_path / "en.json").write_text(json.dumps(HOUSE))
    found = list(intents.home_commands(tmp_path))
    assert found == list(intents.home_commands(tmp_path))
    texts = {label: {r["text"] for r in found if r["label"] == label} for label in ("On", "Set", "Ask")}
    orders = {f"{order}{the} {door} door" for order in ("turn on", "on turn") for the in ("", " the", " my")
              for door in ("front", "back", "cellar")}  # fmt: skip
    assert texts["On"] <= orders and len(texts["On"]) == intents.PER_TEMPLATE
    assert texts["Set"] == {"set it to 10", "set it to 20", "set it to 30"}
    assert texts["Ask"] == {"is it on", "is it open"}  # "same" means two things: it is in neither


@pytest.mark.parametrize("template", ["turn (on", "turn on]", "turn <on"])
def test_a_template_of_another_grammar_is_refused(template: str, tmp_path: Path) -> None:
    house = {**HOUSE, "intents": {"HassOn": {"data": [{"sentences": [template]}]}}}
    (tmp_path / "en.json").write_text(json.dumps(house))
    with pytest.raises(AssetError, match="template"):
        list(intents.home_commands(tmp_path))


def page(*blocks: tuple[str, str, str]) -> str:
    return "".join(f'<{tag} id="{name}" dir="auto">{text}</{tag}>\n' for tag, name, text in blocks)


COMMAND = (
    '<span class="switchinline"><span hidden="true" id="MAC1" class="MAC"><span class="emph">Command</span>'
    '</span><span hidden="true" id="default1"><span class="emph">Ctrl</span></span></span>'
)
BY_ID = {
    "par_id1": (f"Press {COMMAND} and &quot;A&quot; now.", "Appuyez sur A."),
    "par_id2": ("This is not translated.", "This is not translated."),
    "par_id3": ("Too short", "Trop court"),
    "par_id5": ("Only in English, this one.", ""),
}


def test_help_pages_pair_by_id(tmp_path: Path) -> None:
    for side, language in enumerate(("en", "fr")):
        (tmp_path / language).mkdir()
        twice = [("p", "par_id4", f"Two texts have one id {n}") for n in range(2)]
        blocks = [("p", name, both[side]) for name, both in BY_ID.items()]
        (tmp_path / language / "a+b.html").write_text(page(*blocks, *twice))
    found = list(help_pages.translations(tmp_path / "en", tmp_path / "fr"))
    assert found == [{"source": 'Press Ctrl and "A" now.', "target": "Appuyez sur A.", "group": "a+b"}]


def test_a_help_desk_answers_a_heading_with_the_paragraph_below(tmp_path: Path) -> None:
    answer = "Choose File - Print and then the number of copies you want."
    texts = ["To print a page", "Short.", answer, answer + " More.", "See also", answer]
    tags = ["h1", "p", "p", "p", "h2", "p"]
    blocks = [(tag, f"par_id{n}", text) for n, (tag, text) in enumerate(zip(tags, texts, strict=True))]
    (tmp_path / "a.html").write_text(page(*blocks))
    (found,) = help_pages.help_desk(tmp_path)
    assert [m["content"] for m in found["messages"]] == ["To print a page", answer]


def squad_file(*articles: tuple[str, str, str, int]) -> str:
    data = [
        {
            "title": title,
            "paragraphs": [
                {"context": "Rome is old.", "qas": [{"question": question, "id": "1", "answers": [
                    {"text": answer, "answer_start": start}] * 2}]}
            ],
        }
        for title, question, answer, start in articles
    ]  # fmt: skip
    return json.dumps({"version": "1.0", "data": data})


def test_squad_keeps_answers_that_are_where_they_say(tmp_path: Path) -> None:
    (tmp_path / "squaddev_v1.1.json").write_text(squad_file(("Rome", "What is old?", "Rome", 0)))
    (tmp_path / "new_wiki_v1.0.json").write_text(squad_file(("Rome", "In the test too?", "Rome", 0)))
    (tmp_path / "nyt_v1.0.json").write_text(
        squad_file(("Times", "How is it?", "old", 8), ("Other", "?", "old", 3))
    )
    first, second = questions.squad(tmp_path)
    assert first["group"] == "squad-dev: Rome"
    assert first["answers"] == {"text": ["Rome"], "answer_start": [0]}
    assert (second["group"], second["question"]) == ("Times", "How is it?")


def test_conversations_join_what_one_person_says(tmp_path: Path) -> None:
    said = [("a", "Hi"), ("b", " Hello"), ("b", "you"), ("a", "Bye ")]
    turns = [[{"sender": sender, "text": text}] for sender, text in said]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"one": {"messages": turns}, "two": {"messages": turns[:1]}})
    )
    (found,) = speech.conversations(tmp_path)
    roles = [(m["role"], m["content"]) for m in found["messages"]]
    assert roles == [("user", "Hi"), ("assistant", "Hello you"), ("user", "Bye")]


def test_verses_pair_where_chapters_have_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [[["In the [beginning]", "And"], ["Unpaired"]]], ["The First Book of Moses, called Genesis"]
    new = [[["At the first", "Then"], ["One", "two"]]], ["Genesis"]
    monkeypatch.setattr(bible, "books_by_offsets", lambda folder: old)
    monkeypatch.setattr(bible, "basic_english_books", lambda folder: new)
    found = [(r["source"], r["target"], r["group"]) for r in bible.verse_pairs(Path(), Path())]
    assert found == [("In the beginning", "At the first", "Genesis"), ("And", "Then", "Genesis")]


def test_verses_stand_under_each_other_where_chapters_have_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {
        "kjv": [[["In the [beginning]", "And"], ["Whole"]]],
        "web": [[["At first", "And so"], ["The", "two"]]],
    }
    basic = [[["At the first", ""], ["One"]]], ["Genesis"]
    monkeypatch.setattr(bible, "books_by_offsets", lambda folder: (versions[folder.name], ["?"]))
    monkeypatch.setattr(bible, "basic_english_books", lambda folder: basic)
    (found,) = bible.verse_by_verse(Path("kjv"), Path("web"), Path("bbe"))
    assert found.title == "Genesis"
    assert found.text == "In the beginning\nAt first\nAt the first\n\nAnd\nAnd so\n\nWhole\nThe two\nOne\n"


# -- splits


def records(n_groups: int) -> list[dict[str, Any]]:
    return [
        {"text": f"text {group} {n}", "label": "x", "group": f"Intent{group % 3}: {group}"}
        for group in range(n_groups)
        for n in range(3)
    ]


@pytest.mark.parametrize("name", [name for name, d in DATASETS.items() if d.task == "classification"])
def test_groups_stay_together_and_every_record_has_one_split(name: str) -> None:
    dataset, all_records = DATASETS[name], records(60)
    splits = split_records(dataset, all_records)
    assert leaks(splits, dataset.key) == []
    assert sorted(r["text"] for some in splits.values() for r in some) == sorted(
        r["text"] for r in all_records
    )
    assert [len(splits[split]) for split in SPLITS] == [126, 18, 36]  # 70, 10 and 20 % of 180
    assert splits == split_records(dataset, all_records)


def test_every_intent_has_templates_to_learn_from() -> None:
    some = [{"text": f"t{n}", "label": "x", "group": f"I{n}: one template"} for n in range(20)]
    assert len(split_records(DATASETS["intents"], some)["train"]) == 20


def test_a_source_that_appears_again_is_left_out() -> None:
    dataset = replace(DATASETS["kjv-bbe"], assign=labelled._by_book)
    pairs = [("And it was so.", "Genesis"), ("and it  WAS so.", "Ruth"), ("Amen.", "Ruth")]
    splits = split_records(dataset, ({"source": s, "target": "x", "group": g} for s, g in pairs))
    assert [len(splits[split]) for split in SPLITS] == [1, 0, 1]
    twice = [("To print", "Choose Print."), ("To print", "Choose it."), ("To scan", "Choose Print.")]
    desk = ({"messages": [{"content": question}, {"content": answer}], "group": question + answer}
            for question, answer in twice)  # fmt: skip
    assert sum(map(len, split_records(DATASETS["help-desk"], desk).values())) == 1


def test_the_leak_test_can_fail() -> None:
    dataset = replace(DATASETS["headlines"], key=lambda record: (record["text"] + record["group"],))
    some = [{"text": "same", "label": "x", "group": str(n)} for n in range(50)]
    splits = split_records(dataset, some)
    assert leaks(splits, lambda record: (record["text"],)) == [
        "train/test: same",
        "train/validation: same",
        "validation/test: same",
    ]


def test_unknown_names_are_told() -> None:
    with pytest.raises(AssetError, match="did you mean 'squad'"):
        load("squat", "train")
    with pytest.raises(AssetError, match="no split 'tests'; did you mean 'test'"):
        load("squad", "tests")


def test_licences_and_texts() -> None:
    assert DATASETS["help-en-fr"].licences[1].endswith("MPL-2.0")
    record = {"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}, "group": "g"}
    assert list(labelled.texts_of(record)) == ["q", "c", "a"]


# -- the real ones

SIZES = {
    "headlines": (19_948, 2_850, 5_700),
    "film-sentences": (7_049, 1_007, 2_014),
    "intents": (7_128, 968, 1_997),
    "kjv-bbe": (28_072, 478, 1_136),
    "help-en-fr": (21_180, 1_393, 2_241),
    "help-en-zh": (15_091, 1_005, 1_722),
    "squad": (15_696, 1_821, 10_526),
    "help-desk": (1_920, 272, 402),
    "chitchat": (3_609, 200, 200),
    "moby-dick": (94, 14, 27),
}


@pytest.mark.long
@pytest.mark.assets
@pytest.mark.parametrize("name", list(DATASETS))
def test_a_real_data_set(name: str) -> None:
    dataset = DATASETS[name]
    try:
        splits = load_all(name, allow_sdist=True)
    except AssetError as error:
        pytest.skip(str(error))
    assert tuple(len(splits[split]) for split in SPLITS) == SIZES[name]
    assert leaks(splits, dataset.key) == []
    for record in (r for some in splits.values() for r in some):
        assert record.keys() == COLUMNS[dataset.task] | {"group"}
        assert all(text.strip() for text in labelled.texts_of(record))
    labels = {split: {r.get("label") for r in splits[split]} for split in SPLITS}
    assert labels["test"] <= labels["train"]
