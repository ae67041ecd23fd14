"""The page ledger foresees what the native backend really does with its pages."""

from __future__ import annotations

import numpy as np
import pytest

from native_lab import config, needs_library, stored_model
from wafergpt.backends.backend import Capacity, Chunk, OutOfPages
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.pages import PageLedger


def test_pages_are_shared_and_come_back() -> None:
    pages = PageLedger(Capacity(page_tokens=4, n_pages=5))
    pages.open(0)
    pages.grow(0, 9)
    assert (pages.n_free, pages.n_needed(0, 12), pages.n_needed(0, 13), pages.n_needed(0, 1)) == (2, 0, 1, 0)
    pages.fork(0, 1, 8)  # shares two
    pages.fork(0, 2, 9)  # shares two, copies one
    assert pages.n_free == 1
    with pytest.raises(OutOfPages, match="2 pages of key-value memory are needed, 1 are free"):
        pages.grow(1, 13)
    for sequence, n_free in ((0, 2), (2, 3), (1, 5)):
        pages.release(sequence)
        assert pages.n_free == n_free


@needs_library
def test_it_says_what_the_native_backend_does() -> None:
    """2,000 random operations on both: the same ones run out of pages."""
    shape, random = config(), np.random.default_rng(0)
    backend = NativeCPU.from_stored(stored_model(shape), precision="int8", n_threads=1, n_pages=12)
    ledger, lengths, n_refused = PageLedger(backend.capacity), {}, 0
    for _ in range(2000):
        choice = random.integers(6)
        sequence = int(random.choice(list(lengths))) if lengths else None
        if choice == 0 or sequence is None:
            handle = backend.open()
            ledger.open(handle)
            lengths[handle] = 0
        elif choice == 1:
            backend.release(sequence)
            ledger.release(sequence)
            del lengths[sequence]
        elif choice == 2:
            n = int(random.integers(lengths[sequence] + 1))
            try:
                ledger.fork(sequence, -1, n)
            except OutOfPages:
                n_refused += 1
                with pytest.raises(OutOfPages):
                    backend.fork(sequence, n)
            else:
                ledger.release(-1)
                handle = backend.fork(sequence, n)
                ledger.fork(sequence, handle, n)
                lengths[handle] = n
        elif (room := min(30, shape.max_seq_len - lengths[sequence])) > 0:
            n = int(random.integers(1, room + 1))
            try:
                ledger.grow(sequence, lengths[sequence] + n)
            except OutOfPages:
                n_refused += 1
                with pytest.raises(OutOfPages):
                    backend.run([Chunk(sequence=sequence, token_ids=[1] * n)])
            else:
                backend.run([Chunk(sequence=sequence, token_ids=[1] * n)])
                lengths[sequence] += n
    assert 20 < n_refused < 1800
