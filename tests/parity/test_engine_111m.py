"""The engine on the 111M shape, in every precision: a row has the same bits alone and among 16 others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest

from native_lab import PRECISIONS, needs_library
from wafergpt.backends.backend import Chunk, ChunkResult
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import Failed, Generate, Hidden, HiddenStates, Request, Result, Score, Terms
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.scheduler import Limits
from wafergpt.model import family

SHAPE = family.get("111M").config
N_PAGES = 80  # of 32 positions: room for all at once
N_PAGES_FEW = 24
LIMITS = Limits(step_tokens=200, max_sequences=24)


class Recorded(NativeCPU):
    """Notes a hash of every row of logits and of hidden states, by the tokens that led to it."""

    rows: dict[bytes, bytes]
    n_clashes = 0  # rows that were computed twice, differently
    n_chunks_most = 0  # in one step

    def note(self, row: np.ndarray, ids: Sequence[int], kind: bytes) -> None:
        key = hashlib.sha256(kind + np.asarray(ids, np.int32).tobytes()).digest()
        value = hashlib.sha256(row.tobytes()).digest()
        self.n_clashes += self.rows.setdefault(key, value) != value

    def open(self) -> int:
        handle = super().open()
        self.ids[handle] = []
        return handle

    def fork(self, sequence: int, n_tokens: int) -> int:
        handle = super().fork(sequence, n_tokens)
        self.ids[handle] = self.ids[sequence][:n_tokens]
        return handle

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        results = super().run(chunks)
        self.n_chunks_most = max(self.n_chunks_most, len(chunks))
        for chunk, result in zip(chunks, results, strict=True):
            ids = self.ids[chunk.sequence]
            ids += chunk.token_ids
            for kind, found in ((b"logits", result.logits), (b"hidden", result.hidden)):
                n = 0 if found is None else len(found)
                for i in range(n):
                    self.note(found[i], ids[: len(ids) - n + 1 + i], kind)
        return results

    @property
    def ids(self) -> dict[int, list[int]]:
        return self.__dict__.setdefault("_ids", {})


def random_model() -> StoredModel:
    """Weights of deviation 0.04, twice what the recipe starts from; nothing is zero."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, size in SHAPE.parameter_shapes().items():
        array = rng.standard_normal(size, dtype=np.float32) * np.float32(0.04)
        arrays[name] = array + np.float32("ln_" in name and name.endswith("weight"))
    return StoredModel(config=SHAPE, arrays=arrays)


def seventeen() -> list[Request]:
    """Prompts of 1 to 200 tokens, some with equal salted beginnings; sampled, scored, hidden, beams."""
    random = np.random.default_rng(1)
    shared = random.integers(0, SHAPE.vocab_size, 150).tolist()
    requests: list[Request] = []
    for number, n in enumerate((1, 7, 31, 32, 33, 64, 100, 200, 3, 50, 90, 120, 17, 40, 70, 15, 130)):
        ids = tuple(random.integers(0, SHAPE.vocab_size, n).tolist())
        terms = Terms(priority=number % 3 - 1)
        if number % 4 == 1:
            ids, terms = (*shared[: 40 + 5 * number], *ids[:20]), Terms(cache_salt=b"salt")
        sampling = SamplingConfig(
            temperature=float(number % 3 > 0), top_p=0.95, seed=number, max_new_tokens=12
        )
        beams = SamplingConfig(temperature=0, max_new_tokens=12)
        if number % 6 == 2:
            requests.append(Score(token_ids=(*ids, 1), n_top=5, terms=terms))
        elif number == 10:
            requests.append(Hidden(token_ids=ids, last_only=False, terms=terms))
        elif number == 13:
            requests.append(Generate(prompt_ids=ids, sampling=beams, n_beams=3, terms=terms))
        else:
            n_samples = 1 + (number % 5 == 0)
            requests.append(Generate(prompt_ids=ids, sampling=sampling, n=n_samples, n_top=3, terms=terms))
    return requests


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return random_model()


class Careless(Recorded):
    """Planted: in company, the last bit of one row changes."""

    def note(self, row: np.ndarray, ids: Sequence[int], kind: bytes) -> None:
        if self.n_chunks_most > 8 and len(ids) == 70:
            row = np.append(row[:-1], np.nextafter(row[-1], np.float32(np.inf)))
        super().note(row, ids, kind)


def rows_of(
    backend: Recorded, batches: Sequence[Sequence[Request]], limits: Limits | None = None
) -> tuple[list[Result], dict[bytes, bytes]]:
    """Results of the batches one after the other, each in an engine of its own, and all rows met."""
    backend.rows, backend.n_chunks_most, results = {}, 0, []
    for batch in batches:
        engine = Engine(backend, limits=limits)
        results += engine.run(batch)
        engine.close()
        assert engine.scheduler.n_pages_free == backend.capacity.n_pages
    return results, backend.rows


@needs_library
@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_alone_and_among_sixteen_others(precision: str, stored: StoredModel) -> None:
    """Alone each prompt is one piece; together they come in pieces beside decodes, and lose their memory."""
    requests = seventeen()
    backend = Recorded.from_stored(stored, precision=precision, n_pages=N_PAGES)
    assert isinstance(backend, Recorded)
    results, alone = rows_of(backend, [[request] for request in requests])
    few = Recorded(backend._model, n_pages=N_PAGES_FEW)
    for crowded in (backend, few):
        found, together = rows_of(crowded, [requests], LIMITS)
        assert not any(isinstance(result, Failed) for result in found)
        for a, b in zip(found, results, strict=True):
            if isinstance(a, HiddenStates) and isinstance(b, HiddenStates):
                assert np.array_equal(a.states, b.states)
            else:
                assert a == b
        assert together == alone and len(alone) > 300 and crowded.n_clashes == 0
        assert crowded.n_chunks_most >= (17 if crowded is backend else 6)
        crowded.close()


@needs_library
@pytest.mark.long
def test_one_bit_would_be_noticed(stored: StoredModel) -> None:
    backend = Careless.from_stored(stored, precision="int8", n_pages=N_PAGES)
    assert isinstance(backend, Careless)
    _, alone = rows_of(backend, [[request] for request in seventeen()])
    _, together = rows_of(backend, [seventeen()], LIMITS)
    assert together.keys() == alone.keys() and together != alone
    backend.close()
