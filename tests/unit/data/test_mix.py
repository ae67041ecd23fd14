"""The mix holds nothing that a task is tested on, nothing twice, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wafergpt.assets import corpora, labelled
from wafergpt.assets.readers import dictionaries
from wafergpt.assets.readers.document import TextDocument
from wafergpt.data import mix
from wafergpt.data.mix import CorpusCounts, Mix, MixReport, write_mix
from wafergpt.errors import AssetError, ConfigError, DataError

QUOTE = "whither thou goest I will go and where thou lodgest I will lodge thy people"
LONG = "a paragraph of more than thirteen words that somebody has copied from one page to another page"


def splits(**records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {split: records.get(split, []) for split in labelled.SPLITS}


def pair(source: str, group: str) -> dict[str, Any]:
    return {"source": source, "target": "short", "group": group}


TESTS = {
    "kjv-bbe": splits(
        train=[pair("in the train part " * 5, "Genesis")],
        test=[pair(QUOTE, "Ruth")],
        validation=[pair("x", "Joel")],
    ),
    "chitchat": splits(test=[{"messages": [{"role": "user", "content": "hi"}], "group": "id7"}]),
}


def kept(name: str, *texts: str, titles: list[str] | None = None) -> tuple[list[str], CorpusCounts, Mix]:
    built, counts = Mix(TESTS), CorpusCounts(licence="")
    documents = [
        TextDocument(title=title, text=text)
        for title, text in zip(titles or map(str, range(len(texts))), texts, strict=True)
    ]
    return [document.text for document in built.documents(name, documents, counts)], counts, built


def test_quotes_of_a_test_are_taken_out_and_counted() -> None:
    texts, counts, built = kept("sotu", f"Friends. She said, {QUOTE}. Thank you.", "Other.")
    assert texts == ["Friends.\nThank you.\n", "Other.\n"]
    assert (counts.n_documents, counts.n_words, counts.n_overlapping) == (2, 4, 1)
    assert built.report.tests["kjv-bbe"].n_found == built.report.tests["kjv-bbe"].n_runs == 3


def test_text_of_the_train_part_stays() -> None:
    texts, counts, _ = kept("sotu", "in the train part " * 5)
    assert len(texts) == 1
    assert counts.n_overlapping == 0


def test_test_books_are_withheld() -> None:
    texts, counts, _ = kept("bibles", "In", "Whither", "Locusts", titles=["Genesis", "Ruth", "Joel"])
    assert texts == ["In\n"]
    assert counts.n_withheld == 2


def test_a_bible_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\['bible-web'\] would not be withheld by book; .* 'bibles'"):
        write_mix(["sotu", "bible-web"], TESTS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_test_conversations_are_withheld() -> None:
    texts, counts, _ = kept("chitchat", "A: hi", "A: yes", titles=["id7", "id8"])
    assert texts == ["A: yes\n"]
    assert counts.n_withheld == 1


def test_repeats_are_left_out() -> None:
    texts, counts, _ = kept("sotu", f"One.\n{LONG}\nshort", f"Two.\n{LONG.upper()}!\nshort", "Same.", "same")
    assert texts == [f"One.\n{LONG}\nshort\n", "Two.\nshort\n", "Same.\n"]
    assert (counts.n_repeated_paragraphs, counts.n_repeated_documents) == (1, 1)


def test_a_document_of_one_long_paragraph_is_no_repeat_of_itself() -> None:
    texts, counts, _ = kept("sotu", LONG)
    assert texts == [LONG + "\n"]
    assert counts.n_repeated_documents == 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(name: str, *, offline: bool) -> list[TextDocument]:
        return [TextDocument(title="t", text=f"{name}. She said, {QUOTE}.")]

    monkeypatch.setattr(corpora, "documents", documents)
    monkeypatch.setattr(labelled, "load_all", lambda name, *, offline: TESTS[name])


@pytest.mark.usefixtures("small")
def test_what_is_written(tmp_path: Path) -> None:
    report = write_mix(["sotu", "gcide"], TESTS, tmp_path)
    assert report.files == ("sotu.jsonl", "gcide.jsonl")
    lines = [json.loads((tmp_path / file).read_text()) for file in report.files]
    assert lines == [{"origin": "sotu: t", "text": "sotu.\n"}, {"origin": "gcide: t", "text": "gcide.\n"}]
    assert MixReport.load(tmp_path) == report
    assert {test: (of.n_runs, of.n_left) for test, of in report.tests.items()} == {
        "kjv-bbe": (3, 0),
        "chitchat": (0, 0),
    }
    assert "GPL-2.0" in report.corpora["gcide"].licence


@pytest.mark.usefixtures("small")
def test_a_filter_that_lets_a_quote_through_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mix, "_without_overlap", lambda self, text, counts: text)
    with pytest.raises(DataError, match=r"holds runs of 13 words of tests: \{'kjv-bbe': 3\}"):
        write_mix(["sotu"], TESTS, tmp_path)


def test_a_damaged_report_is_told(tmp_path: Path) -> None:
    (tmp_path / mix.REPORT_NAME).write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        MixReport.load(tmp_path)


def test_dictionary_entries_become_prose() -> None:
    entry = (
        'Left-handed \\Left"-hand`ed\\, a.\n   1. Having the left hand or arm\n      stronger.\n'
        "      [1913 Webster] leftish\n\n   2. Clumsy; see {Awkward}. [Obs.]\n   [WordNet 1.5 +PJC]\n\n\n"
    )
    assert dictionaries.plain(entry) == (
        "Left-handed, a. 1. Having the left hand or arm stronger.\n\n2. Clumsy; see Awkward. [Obs.]\n"
    )


@pytest.mark.assets
def test_the_books_of_tests_are_called_as_the_bibles_call_them() -> None:
    try:
        documents = list(corpora.documents("bibles"))
    except AssetError as error:
        pytest.skip(str(error))
    assert set(labelled.TEST_BOOKS + labelled.VALIDATION_BOOKS) <= {document.title for document in documents}
    assert documents[0].text.startswith(
        "In the beginning God created the heaven and the earth.\nIn the beginning God created the heavens"
        " and the earth.\nAt the first God made the heaven and the earth.\n\nAnd the earth was without form"
    )
