"""Mutated programs: no crash, no hang, only named errors; and both engines come to the same end."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import wafer_lab as lab
from wafergpt.errors import WaferGPTError
from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.machine.state import State

MAX_CYCLES = 2_000  # the sound program takes some 240
ENGINES = ("numpy",) if native.available() else ("native", "numpy")


def outcome(image: Image, engine: str) -> tuple[str, State | None]:
    """How the mutant ends: the error's name and line, or the trace hash of a run that ends well."""
    try:
        machine = lab.load(Machine(image, engine=engine, check=True))
    except WaferGPTError as error:
        return f"{type(error).__name__}: {error}", None
    try:
        machine.launch("main", max_cycles=MAX_CYCLES)
    except WaferGPTError as error:
        return f"{type(error).__name__}: {error}", machine.state
    return f"fine: {machine.trace_hash()}", machine.state


def fuzz(seeds: range, engines: tuple[str, ...]) -> Counter[str]:
    """Run mutants; counts of how they ended."""
    sound = lab.busy_program().build()
    ends: Counter[str] = Counter()
    for seed in seeds:
        image = lab.mutant(sound, np.random.default_rng(seed))
        results = [outcome(image, engine) for engine in engines]
        assert len({text for text, _ in results}) == 1, (seed, [text for text, _ in results])
        ends[results[0][0].split(":")[0]] += 1
    return ends


def test_some_hundred_mutants_end_in_named_errors() -> None:
    """Every kind of end that the mutations can bring about is among them."""
    ends = fuzz(range(400), ENGINES[:1])
    wanted = {"fine", "UnknownOperationError", "RouteError", "DeadlockError", "MemoryFaultError"}
    assert wanted <= set(ends), ends


def test_both_engines_end_alike() -> None:
    """Errors with their text, or the trace hash."""
    assert sum(fuzz(range(1_000, 1_012), ENGINES).values()) == 12


@pytest.mark.long
def test_ten_thousand_mutants_end_in_named_errors() -> None:
    ends = fuzz(range(10_000, 20_000), ENGINES[:1])
    assert sum(ends.values()) == 10_000
    assert not {"WaveletLeakError", "MachineError"} & set(ends), ends


@pytest.mark.long
def test_three_hundred_mutants_end_alike_on_both_engines() -> None:
    assert sum(fuzz(range(20_000, 20_300), ENGINES).values()) == 300
