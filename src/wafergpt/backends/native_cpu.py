"""The model run by the native library on a CPU: no torch, every step one call (see kernels/cpu/native).

A row of logits is bit-equal whatever else is in the batch, however the prompt was cut and with however many
threads, on one instruction set. Between instruction sets rounding differs (int8 products do not).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.backends.backend import Capacity, Chunk, ChunkResult, OutOfPages
from wafergpt.backends.packed_blocks import memory_of
from wafergpt.backends.packed_model import (
    Layout,
    PackedModel,
    Precision,
    find_packed,
    layout,
    open_packed,
    pack_model,
    pack_once,
)
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import require
from wafergpt.errors import ConfigError, WaferGPTError
from wafergpt.kernels import native
from wafergpt.model.config import Activation
from wafergpt.model.mup import multipliers

# Unless told otherwise: room for so many full windows, within a quarter of the machine's memory.
_DEFAULT_WINDOWS = 16
_MEMORY_SHARE = 4
_MOST_KEPT_ROWS = 64  # of logits: 13 MB of the largest vocabulary
_REFERENCES_UNUSED = 2  # what sys.getrefcount counts: the attribute and its own argument


@dataclass(kw_only=True)
class _Sequence:
    """What a handle stands for: how many positions are held, and in which pages."""

    length: int
    pages: list[int]
    table: array[int]  # the same pages, int32, where the library reads them
    address: int  # of the table


class _Rows:
    """Rows of logits for one step after the other, in the same memory while nobody keeps the last ones.

    Fresh memory of that size comes from the system page by page, which takes as long as a tenth of a step.
    """

    def __init__(self, width: int) -> None:
        self._memory = np.empty((1, width), np.float32)

    def take(self, n_rows: int) -> NDArray[np.float32]:
        """[n_rows, width], not set; no other array of anybody's shares its memory."""
        unused = sys.getrefcount(self._memory) == _REFERENCES_UNUSED  # a row of it holds one too
        if n_rows > _MOST_KEPT_ROWS:
            return np.empty((n_rows, self._memory.shape[1]), np.float32)
        if not unused or n_rows > len(self._memory):
            self._memory = np.empty((n_rows, self._memory.shape[1]), np.float32)
        return self._memory[:n_rows]


class NativeCPU:
    """A `Backend` over one packed model. One step at a time: `run` may be called from any thread."""

    batch_invariant = True

    def __init__(
        self,
        model: PackedModel,
        *,
        n_pages: int | None = None,
        n_threads: int | None = None,
        pin_threads: bool = False,
        isa: str | None = None,
    ) -> None:
        """`n_threads`: $OMP_NUM_THREADS, else every core this process may use. `isa`: $WAFERGPT_ISA.

        Pinned threads have a core each.
        Raises ConfigError; MissingDependencyError when the library cannot be had.
        """
        self.config, self.precision = model.config, model.precision
        self.isa = native.choose_isa(isa)
        self._model = model  # keeps the mapping alive
        cpus = sorted(os.sched_getaffinity(0))
        self.n_threads = _default_threads(len(cpus)) if n_threads is None else n_threads
        require(1 <= self.n_threads <= 1024, f"n_threads = {self.n_threads} is not in 1..1024")
        require(
            not pin_threads or self.n_threads <= len(cpus),
            f"{self.n_threads} threads cannot be pinned to {len(cpus)} cores",
        )
        config, self._page_bytes = model.config, self._bytes_of_a_page()
        pages_per_window = -(-config.max_seq_len // native.PAGE_TOKENS)
        n_pages = _default_pages(pages_per_window, self._page_bytes) if n_pages is None else n_pages
        require(n_pages >= 1, f"n_pages = {n_pages} must be at least 1")
        self.capacity = Capacity(page_tokens=native.PAGE_TOKENS, n_pages=n_pages)
        try:
            memory = memory_of(n_pages * self._page_bytes)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"{n_pages} pages of keys and values: {error}") from None
        self._pages = np.frombuffer(memory, np.uint8).reshape(n_pages, self._page_bytes)
        self._free = list(range(n_pages - 1, -1, -1))
        self._users = [0] * n_pages
        self._sequences: dict[int, _Sequence] = {}
        self._handles = itertools.count()
        self._lock = threading.Lock()
        self._rows = _Rows(config.vocab_size)
        self._step = native.Step(self._description(cpus[: self.n_threads] if pin_threads else []))

    @classmethod
    def from_packed(cls, path: Path | str, **options: Any) -> NativeCPU:
        """The model of a packed file; options as the constructor's. Raises CheckpointError, ConfigError."""
        return cls(open_packed(Path(path)), **options)

    @classmethod
    def from_stored(
        cls,
        stored: StoredModel,
        *,
        precision: Precision | str = Precision.INT8,
        folder: Path | None = None,
        source: str | None = None,
        **options: Any,
    ) -> NativeCPU:
        """Pack a model and open it.

        With `source`, a hash of its weights, the packed file is kept (in `folder`/packed if that can be
        written, else in the cache) and used again; without, it vanishes with this object. Raises
        CheckpointError, ConfigError, StorageError, MissingDependencyError.
        """
        precision = Precision.parse(precision)
        n_threads = len(os.sched_getaffinity(0))  # of packing
        if source is not None:
            found = find_packed(folder, source, precision)
            if found is None:
                path = pack_once(stored, precision, folder=folder, source=source, n_threads=n_threads)
                found = open_packed(path)
            return cls(found, **options)
        with tempfile.TemporaryDirectory(prefix="wafergpt-packed-") as scratch:
            path = Path(scratch) / "model.wgpack"
            pack_model(stored, precision, path, n_threads=n_threads)
            return cls.from_packed(path, **options)  # the mapping outlives the name

    @property
    def vocab_size(self) -> int:
        """Number of logits in a row."""
        return self.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Context window in tokens."""
        return self.config.max_seq_len

    @property
    def d_model(self) -> int:
        """Width of a hidden row."""
        return self.config.d_model

    def open(self) -> int:
        """See `Backend.open`."""
        with self._lock:
            return self._add(0, [])

    def fork(self, sequence: int, n_tokens: int) -> int:
        """See `Backend.fork`. A page that is only partly taken over is copied."""
        with self._lock:
            of = self._get(sequence)
            require(
                0 <= n_tokens <= of.length, f"{of.length} tokens are held, {n_tokens} cannot be taken over"
            )
            n_whole, rest = divmod(n_tokens, native.PAGE_TOKENS)
            pages = of.pages[:n_whole]
            if rest:
                self._check_free(1)
                pages = [*pages, self._take()]
                self._pages[pages[-1]] = self._pages[of.pages[n_whole]]
            for page in pages[:n_whole]:
                self._users[page] += 1
            return self._add(n_tokens, pages)

    def release(self, sequence: int) -> None:
        """See `Backend.release`."""
        with self._lock:
            for page in self._get(sequence).pages:
                self._give_back(page)
            del self._sequences[sequence]

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """See `Backend.run`. Everything is checked before anything is changed."""
        if not chunks:
            return []
        with self._lock:
            ids = [self._check(chunk) for chunk in chunks]
            held = [self._sequences[chunk.sequence] for chunk in chunks]
            require(len({c.sequence for c in chunks}) == len(chunks), "a sequence is named twice in one step")
            needed = [
                -(-(s.length + len(c.token_ids)) // native.PAGE_TOKENS) - len(s.pages)
                for s, c in zip(held, chunks, strict=True)
            ]
            if not any(needed):
                return self._run(chunks, held, ids)
            self._check_free(sum(needed))
            with self._added_pages(held, needed):
                return self._run(chunks, held, ids)

    def close(self) -> None:
        """End the threads. Nothing may be called afterwards."""
        self._step.close()

    def __del__(self) -> None:
        step = getattr(self, "_step", None)
        if step is not None:
            step.close()

    def _run(
        self, chunks: Sequence[Chunk], held: list[_Sequence], ids: list[array[int]]
    ) -> list[ChunkResult]:
        n_logits = sum([c.n_logits for c in chunks])
        n_hidden = sum([len(c.token_ids) for c in chunks if c.want_hidden])
        logits = self._rows.take(n_logits) if n_logits else None
        hidden = np.empty((n_hidden, self.d_model), np.float32) if n_hidden else None
        table: list[int] = []
        for c, s, i in zip(chunks, held, ids, strict=True):
            table += (i.buffer_info()[0], s.address, len(i), s.length, c.n_logits, c.want_hidden)
        failure = self._step.run(table, logits, hidden)
        if failure:
            raise WaferGPTError(f"the native backend could not run a step: {failure}")
        results, row, first = [], 0, 0
        for c, s in zip(chunks, held, strict=True):
            n = len(c.token_ids)
            s.length += n
            rows = states = None
            if logits is not None and c.n_logits:
                rows = logits[row : row + c.n_logits]
                row += c.n_logits
            if hidden is not None and c.want_hidden:
                states = hidden[first : first + n]
                first += n
            results.append(ChunkResult(logits=rows, hidden=states))
        return results

    def _check(self, chunk: Chunk) -> array[int]:
        """The chunk's ids as int32, once it is known to be one that can be run (memory aside)."""
        of, ids = self._get(chunk.sequence), chunk.token_ids
        n_new = len(ids)
        if not (0 <= chunk.n_logits <= n_new and 0 < n_new <= self.max_seq_len - of.length):
            self._refuse(chunk, of)
        if n_new == 1 and type(ids[0]) is int and 0 <= ids[0] < self.vocab_size:  # decoding: no time to lose
            return array("i", ids)
        rows = np.asarray(ids)
        require(rows.ndim == 1 and rows.dtype.kind in "iu", "token ids must be whole numbers")
        low, high = int(rows.min()), int(rows.max())
        wrong = low if low < 0 else high
        require(
            low >= 0 and high < self.vocab_size,
            f"token id {wrong} is outside the vocabulary of {self.vocab_size}",
        )
        return array("i", rows.astype(np.int32).tobytes())

    def _refuse(self, chunk: Chunk, of: _Sequence) -> None:
        n_new = len(chunk.token_ids)
        require(n_new >= 1, "a chunk needs at least one token")
        require(0 <= chunk.n_logits <= n_new, f"n_logits = {chunk.n_logits} is not in 0..{n_new}")
        require(
            of.length + n_new <= self.max_seq_len,
            f"{of.length} tokens held and {n_new} new do not fit the context window of {self.max_seq_len}",
        )

    def _get(self, sequence: int) -> _Sequence:
        found = self._sequences.get(sequence)
        if found is None:
            raise ConfigError(f"no sequence has the handle {sequence}; it was released or never made")
        return found

    def _add(self, length: int, pages: list[int]) -> int:
        handle = next(self._handles)
        table = array("i", bytes(4 * -(-self.max_seq_len // native.PAGE_TOKENS)))
        table[: len(pages)] = array("i", pages)
        self._sequences[handle] = _Sequence(
            length=length, pages=pages, table=table, address=table.buffer_info()[0]
        )
        return handle

    def _check_free(self, n_pages: int) -> None:
        if n_pages > len(self._free):
            raise OutOfPages(f"{n_pages} pages of key-value memory are needed, {len(self._free)} are free")

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = 1
        return page

    def _give_back(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page] == 0:
            self._free.append(page)

    @contextlib.contextmanager
    def _added_pages(self, held: list[_Sequence], needed: list[int]) -> Iterator[None]:
        """Pages at the end of the sequences; taken away again if the step fails."""
        for s, n in zip(held, needed, strict=True):
            for _ in range(n):
                s.table[len(s.pages)] = page = self._take()
                s.pages.append(page)
        try:
            yield
        except BaseException:
            for s, n in zip(held, needed, strict=True):
                for _ in range(n):
                    self._give_back(s.pages.pop())
            raise

    def _bytes_of_a_page(self) -> int:
        c = self.config
        return int(native.load().wn_page_bytes(self.precision.keys, c.n_layers, c.n_heads, c.d_head))

    def _description(self, cpus: list[int]) -> native.ModelStruct:
        config, factors = self.config, multipliers(self.config)
        places = layout(config, self.precision)
        layers, numbers = (
            (native.LayerStruct * config.n_layers)(
                *(_layer(places, i, self.precision.layers) for i in range(config.n_layers))
            ),
            (ctypes.c_int32 * max(1, len(cpus)))(*cpus),
        )
        return native.ModelStruct(
            d_model=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_ffn=config.ffn_width,
            vocab_size=config.vocab_size,
            max_seq_len=config.max_seq_len,
            tanh_activation=int(config.activation is Activation.GELU_TANH),
            kv_format=self.precision.keys,
            n_pages=self.capacity.n_pages,
            n_threads=self.n_threads,
            n_cpus=len(cpus),
            eps=config.layer_norm_eps,
            embedding_multiplier=factors.embedding,
            attention_scale=factors.attention_scale,
            logit_multiplier=factors.logits,
            base=self._model.body.ctypes.data,
            layers=layers,
            wte=_matrix(places, "wte", self.precision.head),
            wpe=places.begin("wpe.weight", "floats"),
            ln_f_weight=places.begin("ln_f.weight", "floats"),
            ln_f_bias=places.begin("ln_f.bias", "floats"),
            pages=self._pages.ctypes.data,
            cpus=numbers,
            isa=self.isa.encode(),
        )


def _matrix(places: Layout, name: str, format: native.Format) -> native.MatrixStruct:
    panels, scales = places.begin(f"{name}.weight", "panels"), places.begin(f"{name}.weight", "scales")
    bias = places.begin(f"{name}.bias", "floats")
    return native.MatrixStruct(format=format, panels=panels, scales=scales, bias=bias)


def _layer(places: Layout, index: int, format: native.Format) -> native.LayerStruct:
    block = f"h.{index}"
    return native.LayerStruct(
        ln_1_weight=places.begin(f"{block}.ln_1.weight", "floats"),
        ln_1_bias=places.begin(f"{block}.ln_1.bias", "floats"),
        ln_2_weight=places.begin(f"{block}.ln_2.weight", "floats"),
        ln_2_bias=places.begin(f"{block}.ln_2.bias", "floats"),
        qkv=_matrix(places, f"{block}.attn.c_attn", format),
        attention_out=_matrix(places, f"{block}.attn.c_proj", format),
        fc=_matrix(places, f"{block}.mlp.c_fc", format),
        ffn_out=_matrix(places, f"{block}.mlp.c_proj", format),
    )


def _default_threads(n_cores: int) -> int:
    """OpenMP's variable is what everybody sets; a list is for nested regions: the first counts."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(text), n_cores) if text.isdigit() and int(text) else n_cores


def _default_pages(pages_per_window: int, page_bytes: int) -> int:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affordable = memory_bytes // _MEMORY_SHARE // page_bytes
    return int(max(pages_per_window, min(_DEFAULT_WINDOWS * pages_per_window, affordable)))
