"""Runs of 13 words are found by any spelling, and taken out with their sentences; beside a definition."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from wafergpt.data.overlap import RUN_WORDS, RunFinder, is_in

WORDS = [f"w{n}" for n in range(40)]


def plain_runs(text: str) -> list[tuple[str, ...]]:
    """The definition: every 13 words in a row."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [tuple(words[n : n + RUN_WORDS]) for n in range(len(words) - RUN_WORDS + 1)]


def prose(seed: int, n_sentences: int) -> str:
    rng = random.Random(seed)
    sentences = (
        " ".join(rng.choices(WORDS, k=rng.randint(3, 30))) + rng.choice(".!?;") for _ in range(n_sentences)
    )
    return "".join(sentence + rng.choice([" ", "\n", "\n\n"]) for sentence in sentences)


def test_runs_are_those_of_the_definition() -> None:
    finder, text = RunFinder(), prose(0, 200)
    runs = finder.runs(text)
    assert len(runs) == len(plain_runs(text)) > 1000
    assert len(set(runs.tolist())) == len(set(plain_runs(text)))
    assert RunFinder().runs(text).tolist() == runs.tolist()


def test_case_and_punctuation_do_not_hide_a_run() -> None:
    finder = RunFinder()
    words = " ".join(WORDS[:13])
    assert finder.runs(words).tolist() == finder.runs(f'"{words.upper()}"'.replace(" ", ", ")).tolist()
    assert len(finder.runs(" ".join(WORDS[:12]))) == 0
    assert finder.runs(" ".join(WORDS[12::-1])) != finder.runs(words)


def test_a_sentence_that_holds_a_run_is_taken_out() -> None:
    finder = RunFinder()
    quoted = " ".join(WORDS[:13])
    known = finder.distinct([quoted])
    text = f"Before it. He said: yes, {quoted}, and more; after it. The end.\n\nNext."
    found, n_dropped, runs = finder.without(text, known)
    assert found == "Before it. He said:\nafter it. The end.\n\nNext."
    assert n_dropped == 1
    assert runs.tolist() == known.tolist()


def test_a_run_over_two_sentences_takes_both() -> None:
    finder = RunFinder()
    quoted = " ".join(WORDS[:6]) + ". " + " ".join(WORDS[6:13])
    found, n_dropped, _ = finder.without(f"One. Oh {quoted} ah. Two.", finder.distinct([quoted]))
    assert (found.split(), n_dropped) == (["One.", "Two."], 2)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_known_is_left_and_nothing_else_is_lost(seed: int) -> None:
    finder, text = RunFinder(), prose(seed, 60)
    tests = [" ".join(plain_runs(text)[n]) for n in (0, 50, 51, 300)]
    known = finder.distinct(tests)
    found = text
    for _ in range(5):
        found, _, _ = finder.without(found, known)
    assert not set(plain_runs(found)) & {run for test in tests for run in plain_runs(test)}
    lost = len(re.findall(r"\w+", text)) - len(re.findall(r"\w+", found))
    assert 0 < lost <= 5 * 2 * 30 * 4  # each of 4 runs lies in at most 5 sentences of 30 words, twice


def test_letters_that_grow_when_lowered() -> None:
    finder = RunFinder()
    quoted = " ".join(["İstanbul", *WORDS[:12]])
    found, n_dropped, _ = finder.without(f"İİİ. Here {quoted}. Kept.", finder.distinct([quoted]))
    assert n_dropped == 1
    assert found.split() == ["İİİ.", "Kept."]


def test_is_in() -> None:
    known = np.array([2, 5, 9], np.uint64)
    assert is_in(np.array([9, 1, 5, 10], np.uint64), known).tolist() == [True, False, True, False]
    assert is_in(np.array([9], np.uint64), known[:0]).tolist() == [False]
