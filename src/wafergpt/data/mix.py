"""The text a base model reads: corpora, cleaned, without repeats and without what tasks are tested on.

`write_mix` writes one .jsonl file per corpus and `mix.json`: what was withheld, left out and found. In this
order: a document that belongs to a test is withheld; sentences that share 13 words in a row with any test are
taken out; paragraphs that were there before are left out, then documents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.assets import corpora, labelled
from wafergpt.assets.readers import dictionaries
from wafergpt.assets.readers.document import TextDocument
from wafergpt.assets.table import get
from wafergpt.config import from_dict, require, to_dict
from wafergpt.data.overlap import RUN_WORDS, RunFinder, Runs, is_in
from wafergpt.errors import ConfigError, DataError

REPORT_NAME = "mix.json"
TESTS = ("validation", "test")  # both are withheld
_WORD = re.compile(r"[^\W_]+")
_CLEANERS: dict[str, Callable[[str], str]] = {"gcide": dictionaries.plain}
_TESTED_AS = {"bibles": "kjv-bbe"}  # corpora whose documents belong to the tests of another name
_MOST_PASSES = 5


@dataclass(kw_only=True)
class CorpusCounts:
    """What became of one corpus."""

    licence: str
    n_documents: int = 0  # written
    n_words: int = 0  # written
    n_withheld: int = 0  # documents that belong to a test
    n_overlapping: int = 0  # sentences that share a run of words with a test
    n_repeated_paragraphs: int = 0
    n_repeated_documents: int = 0


@dataclass(kw_only=True)
class TestOverlap:
    """How much of one data set's tests the mix held."""

    __test__ = False  # no test for pytest

    n_runs: int  # different runs of 13 words in its tests
    n_found: int = 0  # of them in the corpora, once its own documents were withheld
    n_left: int = 0  # of them in what was written: the bar is 0


@dataclass(kw_only=True)
class MixReport:
    """What `write_mix` did."""

    corpora: dict[str, CorpusCounts] = field(default_factory=dict)
    tests: dict[str, TestOverlap] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `mix.json`."""
        (folder / REPORT_NAME).write_text(json.dumps(to_dict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> MixReport:
        """Read `mix.json`. Raises DataError naming the file."""
        path = folder / REPORT_NAME
        try:
            return from_dict(cls, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ConfigError) as error:
            raise DataError(f"cannot read '{path}': {error}") from None


def write_mix(
    names: Iterable[str], tests: Iterable[str], folder: Path, *, offline: bool = False
) -> MixReport:
    """Write the mix of the corpora `names`, free of the tests of the data sets `tests`, into `folder`.

    Raises ConfigError for a Bible alone; AssetError for what cannot be fetched; DataError if runs of a test
    stay in the text.
    """
    names = tuple(names)
    for joined in corpora.JOINED:
        alone = set(names) & set(corpora.assets_of(joined))
        require(not alone, f"{sorted(alone)} would not be withheld by book; the mix takes '{joined}'")
    splits = {test: labelled.load_all(test, offline=offline) for test in tests}
    mix = Mix(splits)
    files = []
    for name in names:
        counts = CorpusCounts(licence=_licence(name))
        mix.report.corpora[name] = counts
        files.append(f"{name}.jsonl")
        with open(folder / files[-1], "w", encoding="utf-8") as file:
            for document in mix.documents(name, corpora.documents(name, offline=offline), counts):
                line = {"origin": f"{name}: {document.title}", "text": document.text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    mix.report.files = tuple(files)
    mix.count_left(folder / file for file in files)
    mix.report.save(folder)
    left = {name: test.n_left for name, test in mix.report.tests.items() if test.n_left}
    if left:
        raise DataError(f"the mix in '{folder}' holds runs of {RUN_WORDS} words of tests: {left}")
    return mix.report


class Mix:
    """The stages each document goes through; remembers what it has seen and counts what it leaves out."""

    def __init__(self, splits: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
        """`splits`: data set -> split -> records."""
        self._finder = RunFinder()
        self._of_tests = {
            name: self._finder.distinct(
                text for split in TESTS for record in of[split] for text in labelled.texts_of(record)
            )
            for name, of in splits.items()
        }
        self.report = MixReport()
        self.report.tests = {name: TestOverlap(n_runs=len(runs)) for name, runs in self._of_tests.items()}
        self._known = _union(self._of_tests.values())
        self._withheld = {
            name: {record["group"] for split in TESTS for record in of[split]} for name, of in splits.items()
        }
        self._hits: list[Runs] = []
        self._seen: set[bytes] = set()

    def documents(
        self, name: str, documents: Iterable[TextDocument], counts: CorpusCounts
    ) -> Iterator[TextDocument]:
        """What is kept of the corpus `name`."""
        clean = _CLEANERS.get(name, str)
        withheld = self._withheld.get(_TESTED_AS.get(name, name), set())
        for document in documents:
            if document.title in withheld:
                counts.n_withheld += 1
                continue
            text = self._without_overlap(clean(document.text), counts)
            text = "\n".join(self._fresh_paragraphs(text, counts)).strip()
            if not text:
                continue
            if self._was_seen("document", text):
                counts.n_repeated_documents += 1
                continue
            counts.n_documents += 1
            counts.n_words += len(_WORD.findall(text))
            yield TextDocument(title=document.title, text=text + "\n")
        hits = _union(self._hits)
        for test, runs in self._of_tests.items():
            self.report.tests[test].n_found = int(is_in(runs, hits).sum())

    def count_left(self, paths: Iterable[Path]) -> None:
        """Look for every test's runs in the written files, and fill in `n_left`."""
        found: list[Runs] = []
        for path in paths:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    runs = self._finder.runs(json.loads(line)["text"])
                    found.append(np.unique(runs[is_in(runs, self._known)]))
        left = _union(found)
        for test, runs in self._of_tests.items():
            self.report.tests[test].n_left = int(is_in(runs, left).sum())

    def _without_overlap(self, text: str, counts: CorpusCounts) -> str:
        for _ in range(_MOST_PASSES):  # what was apart may come together
            text, n_dropped, hits = self._finder.without(text, self._known)
            counts.n_overlapping += n_dropped
            if n_dropped == 0:
                break
            self._hits.append(hits)
        return text

    def _fresh_paragraphs(self, text: str, counts: CorpusCounts) -> Iterator[str]:
        """The lines of `text` but those of at least a run's words that were there before."""
        for line in text.split("\n"):
            if len(line.split()) >= RUN_WORDS and self._was_seen("paragraph", line):
                counts.n_repeated_paragraphs += 1
            else:
                yield line

    def _was_seen(self, kind: str, text: str) -> bool:
        words = " ".join([kind, *_WORD.findall(text.lower())])
        digest = hashlib.blake2b(words.encode(), digest_size=12).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _union(parts: Iterable[Runs]) -> Runs:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def _licence(name: str) -> str:
    assets = map(get, corpora.assets_of(name))
    return "; ".join(f"{a.package} {a.version} ({a.registry.value}): {a.licence}" for a in assets)
