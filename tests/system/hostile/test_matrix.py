"""Hostile model folders: refused with the file and the rule, no code run, memory and time bounded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_lab.process import memory_folder
from hostile_lab.planted import LOADERS
from hostile_lab.runner import all_cases, run_cases, system_calls_outside

N_CASES = 160  # the bar


@pytest.fixture
def root() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def test_every_hostile_folder_is_refused_and_every_valid_one_loads(root: Path) -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) >= N_CASES
    problems = run_cases(cases, root)
    assert problems.keys() == {case.name for case in cases}
    found = [f"{name}: {problem}" for name, wrong in problems.items() for problem in wrong]
    assert not found, "\n".join(found)


# The case on which each planted fault shows, and a word of what the runner says about it.
SHOWS = {
    "unpickles": ("pickle as weights: protocol 2", "the marker is there"),
    "believes_lengths": ("safetensors: header length 2^62", "MemoryError"),
    "touches_memory": ("safetensors: a hole", "peak of"),
    "never_ends": ("safetensors: a hole", "SIG"),
    "follows_links": ("link out as config.json", "opened"),
    "runs_code": ("safetensors: a hole", "exec"),
    "connects": ("safetensors: a hole", "socket"),
    "imports": ("safetensors: a hole", "import"),
    "writes": ("safetensors: a hole", "for writing"),
    "accepts_everything": ("safetensors: a hole", "it was loaded"),
    "lets_errors_through": ("safetensors: a hole", "JSONDecodeError"),
    "speaks_of_nothing": ("safetensors: a hole", "lacks"),
    "speaks_in_lines": ("link out as config.json", "one short printable line"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_planted_fault_is_seen(loader: str, root: Path) -> None:
    name, word = SHOWS[loader]
    (case,) = (case for case in all_cases() if case.name == name)
    problems = run_cases([case], root, loader)[name]
    assert any(word in problem for problem in problems), problems


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_system_sees_nothing_opened_outside(root: Path) -> None:
    def small(name: str) -> bool:  # links and giants are the audit hook's; under strace each call costs
        return not name.startswith(("10,000", "valid: hub"))

    sample = [case for case in all_cases()[::4] if small(case.name)]
    outside = system_calls_outside(sample, root)
    assert not outside, "\n".join(outside[:20])


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_planted_open_outside_is_seen_by_the_system(root: Path) -> None:
    (case,) = (case for case in all_cases() if case.name == "safetensors: a hole")
    assert any("socket" in call for call in system_calls_outside([case], root, "connects"))
