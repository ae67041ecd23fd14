"""Sequences, pages and refusals of the native backend; its threads beside torch's, forks, other callers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from native_lab import config, needs_library, rows_of, stored_model, token_ids
from wafergpt.backends.backend import Chunk, OutOfPages
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.errors import ConfigError, MissingDependencyError, WaferGPTError
from wafergpt.kernels import native, native_build

pytestmark = needs_library
SHAPE = config()
IDS = token_ids(SHAPE, 80)
PAGE = native.PAGE_TOKENS


@pytest.fixture
def backend() -> NativeCPU:
    """Six pages: two windows of 80 positions."""
    return NativeCPU.from_stored(stored_model(SHAPE), precision="int8", n_threads=1, n_pages=6)


def feed(backend: NativeCPU, sequence: int, ids: list[int]) -> np.ndarray:
    logits = backend.run([Chunk(sequence=sequence, token_ids=ids)])[0].logits
    assert logits is not None
    return logits[0]


def test_what_it_is(backend: NativeCPU) -> None:
    assert (backend.vocab_size, backend.max_seq_len, backend.d_model) == (131, 80, 60)
    assert (backend.capacity.page_tokens, backend.capacity.n_pages) == (PAGE, 6)
    assert backend.batch_invariant


def test_only_what_is_wanted_is_returned(backend: NativeCPU) -> None:
    first, second = backend.open(), backend.open()
    results = backend.run(
        [
            Chunk(sequence=second, token_ids=IDS[:9], n_logits=0, want_hidden=True),
            Chunk(sequence=first, token_ids=IDS[:40], n_logits=3),
        ]
    )
    assert results[0].logits is None and results[1].hidden is None
    assert results[0].hidden is not None and results[0].hidden.shape == (9, 60)
    assert results[1].logits is not None and results[1].logits.shape == (3, 131)
    assert results[1].logits.dtype == np.float32
    assert backend.run([]) == []


def test_a_fork_goes_on_as_its_origin_would(backend: NativeCPU) -> None:
    """At, before and behind the edge of a page; whole pages are shared, so 80 positions twice fit thrice."""
    origin = backend.open()
    feed(backend, origin, IDS[:66])
    for n in (0, 1, PAGE - 1, PAGE, PAGE + 1, 66):
        fork = backend.fork(origin, n)
        again = rows_of(backend, IDS[n : n + 3], [3], fork)
        fresh = NativeCPU.from_stored(stored_model(SHAPE), precision="int8", n_threads=1)
        assert np.array_equal(again, rows_of(fresh, IDS[: n + 3], [n + 3])[n:]), n
    feed(backend, origin, IDS[66:67])
    shared = [backend.fork(origin, 2 * PAGE) for _ in range(50)]  # no page of their own yet
    origin_row = feed(backend, origin, IDS[67:68])
    for sequence in shared[:2]:
        feed(backend, sequence, IDS[:1])  # a page each: 3 + 2 of 6 are in use
    backend.release(origin)
    again = rows_of(backend, IDS[2 * PAGE : 68], [68], shared[2])
    assert np.array_equal(again[-1], origin_row), "pages of a released origin live on"


def test_pages_come_back_when_the_last_user_goes(backend: NativeCPU) -> None:
    origin = backend.open()
    feed(backend, origin, IDS[:64])
    forks = [backend.fork(origin, 64) for _ in range(3)]
    backend.release(origin)
    for fork in forks:
        backend.release(fork)
    for _ in range(20):
        pair = [backend.open(), backend.open()]
        backend.run([Chunk(sequence=s, token_ids=IDS) for s in pair])
        for sequence in pair:
            backend.release(sequence)


def test_out_of_pages_changes_nothing(backend: NativeCPU) -> None:
    first, second, third = backend.open(), backend.open(), backend.open()
    feed(backend, first, IDS[:70])
    feed(backend, second, IDS[:32])
    with pytest.raises(OutOfPages, match="3 pages of key-value memory are needed, 2 are free"):
        backend.run(
            [
                Chunk(sequence=second, token_ids=IDS[32:33]),
                Chunk(sequence=third, token_ids=IDS[:33]),
            ]
        )
    row = feed(backend, second, IDS[32:33])
    fresh = NativeCPU.from_stored(stored_model(SHAPE), precision="int8", n_threads=1)
    assert np.array_equal(row, rows_of(fresh, IDS[:33], [33])[-1])
    feed(backend, third, IDS[:32])
    with pytest.raises(OutOfPages):
        backend.fork(first, 3)
    assert backend.fork(first, 64) is not None


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ({"token_ids": [131]}, "token id 131 is outside the vocabulary of 131"),
        ({"token_ids": [5, -1, 2]}, "token id -1 is outside"),
        ({"token_ids": []}, "at least one token"),
        ({"token_ids": [1.5]}, "whole numbers"),
        ({"token_ids": [1], "n_logits": 2}, "n_logits = 2 is not in 0..1"),
        ({"token_ids": [1], "n_logits": -1}, "n_logits = -1"),
        ({"token_ids": IDS + IDS[:1]}, "0 tokens held and 81 new do not fit the context window of 80"),
        ({"token_ids": [1], "sequence": 99}, "no sequence has the handle 99"),
    ],
)
def test_refusals_leave_every_sequence_as_it_was(backend: NativeCPU, chunk: dict, message: str) -> None:
    good, bad = backend.open(), backend.open()
    chunks = [Chunk(sequence=good, token_ids=IDS[:5]), Chunk(**{"sequence": bad} | chunk)]
    with pytest.raises(ConfigError, match=message):
        backend.run(chunks)
    assert np.array_equal(rows_of(backend, IDS[:5], [5], good), rows_of(backend, IDS[:5], [5], bad))


def test_more_refusals(backend: NativeCPU) -> None:
    sequence = backend.open()
    with pytest.raises(ConfigError, match="named twice"):
        backend.run([Chunk(sequence=sequence, token_ids=[1]), Chunk(sequence=sequence, token_ids=[2])])
    with pytest.raises(ConfigError, match="1 cannot be taken over"):
        backend.fork(sequence, 1)
    backend.release(sequence)
    with pytest.raises(ConfigError, match="was released or never made"):
        backend.release(sequence)
    for options, message in [
        ({"n_threads": 0}, "n_threads = 0"),
        ({"n_pages": 0}, "n_pages = 0"),
        ({"n_threads": 1000, "pin_threads": True}, "1000 threads cannot be pinned"),
        ({"isa": "axv2"}, "did you mean 'avx2'"),
        ({"isa": "amy"}, "did you mean 'amx'"),
        ({"precision": "int9"}, "precision 'int9' is not one of f32, bf16, int8, int4"),
    ]:
        with pytest.raises(ConfigError, match=message):
            NativeCPU.from_stored(stored_model(SHAPE), **options)


def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAFERGPT_ISA", "scalar")
    assert NativeCPU.from_stored(stored_model(SHAPE)).isa == "scalar"
    monkeypatch.setenv("WAFERGPT_ISA", "sse9")
    with pytest.raises(ConfigError, match="WAFERGPT_ISA = 'sse9' is not one of scalar, avx2"):
        NativeCPU.from_stored(stored_model(SHAPE))
    monkeypatch.delenv("WAFERGPT_ISA")
    assert NativeCPU.from_stored(stored_model(SHAPE)).isa == native.supported_isas()[-1]
    monkeypatch.setattr(native, "supported_isas", lambda: ["scalar", "avx2"])
    with pytest.raises(ConfigError, match="this CPU has scalar, avx2"):
        native.choose_isa("avx512")


def test_without_the_library_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no compiler here"
    absent = native_build.KernelStatus(available=False, path=None, compiler=None, reason=reason)
    monkeypatch.setattr(native_build, "_resolve", lambda: (None, absent))
    with pytest.raises(MissingDependencyError, match=f"native CPU backend is not there: {reason}"):
        NativeCPU.from_stored(stored_model(SHAPE))


def test_rows_that_somebody_keeps_are_never_written_again(backend: NativeCPU) -> None:
    """Rows come in memory that is used again, but only when nobody holds any part of the last ones."""
    sequence = backend.open()
    kept, copies = [], []
    for at in range(40):
        result = backend.run([Chunk(sequence=sequence, token_ids=IDS[at : at + 1])])[0]
        assert result.logits is not None
        if at % 3:
            kept.append(result.logits if at % 2 else result.logits[0, 1:4])
            copies.append(kept[-1].copy())
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))
    places = set()
    del result
    for at in range(40, 44):
        result = backend.run([Chunk(sequence=sequence, token_ids=IDS[at : at + 1])])[0]
        assert result.logits is not None
        places.add(result.logits.ctypes.data)
        del result
    assert len(places) == 1, "nobody keeps them: one place for all"


def test_a_step_that_fails_gives_its_pages_back(backend: NativeCPU, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = backend.open()
    with monkeypatch.context() as patch:
        patch.setattr(native.Step, "run", lambda *_: "std::bad_alloc")
        for _ in range(9):
            with pytest.raises(WaferGPTError, match="could not run a step: std::bad_alloc"):
                backend.run([Chunk(sequence=sequence, token_ids=IDS[:33])])
    fresh = NativeCPU.from_stored(stored_model(SHAPE), precision="int8", n_threads=1)
    assert np.array_equal(rows_of(backend, IDS, [80], sequence), rows_of(fresh, IDS, [80]))


def test_many_threads_many_callers_and_torch() -> None:
    """Eight threads on two cores, four callers, torch's own pool at work: same bits, no deadlock."""
    backend = NativeCPU.from_stored(stored_model(SHAPE), precision="int4", n_threads=8)
    expected = rows_of(backend, IDS, [80])
    failures = []

    def call(seed: int) -> None:
        for i in range(5):
            if not np.array_equal(rows_of(backend, IDS, [seed + 1, 7, 3 + i]), expected):
                failures.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(20):
        torch.randn(64, 64) @ torch.randn(64, 64)
    for caller in callers:
        caller.join()
    assert failures == []


def test_closing_ends_the_threads_and_pinning_binds_only_them() -> None:
    def n_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before, allowed = n_threads(), os.sched_getaffinity(0)
    backends = [
        NativeCPU.from_stored(stored_model(SHAPE), n_threads=len(allowed), pin_threads=True) for _ in range(3)
    ]
    for backend in backends:
        rows_of(backend, IDS, [80])
    assert n_threads() == before + 3 * (len(allowed) - 1)
    assert os.sched_getaffinity(0) == allowed, "the caller's own affinity is not ours to change"
    for backend in backends:
        backend.close()
    assert n_threads() == before


FORKING = """
import os, sys
import numpy as np
from native_lab import config, rows_of, stored_model, token_ids
from wafergpt.backends.native_cpu import NativeCPU

backend = NativeCPU.from_stored(stored_model(config()), n_threads=3)
ids = token_ids(config(), 40)
expected = rows_of(backend, ids, [40])
child = os.fork()
same = np.array_equal(rows_of(backend, ids, [7]), expected)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert same and status == 0 and "torch" not in sys.modules
"""


def test_a_forked_process_makes_its_own_threads_and_needs_no_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", FORKING], env=environment, check=True, timeout=60)
