"""The model run by PyTorch through `torch.compile`: a static key-value cache, decodes of all together.

Every shape is rounded up, rows to a power of two and keys to a power of two times 128, so that a bounded
number of graphs serves every step (`n_graphs`). On CUDA each is captured once and replayed; that part is
written but has never run on a GPU. Pieces of prompts run uncompiled, on the same cache.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wafergpt.backends.backend import Capacity, Chunk, ChunkResult, LogitRows
from wafergpt.backends.pages import PageLedger
from wafergpt.config import require
from wafergpt.model.gpt import GPT, Pass
from wafergpt.model.inputs import check_ids

# No pages here: every sequence has a whole window in its slot. They are counted, as the Protocol promises.
_PAGE_TOKENS = 16
_DEFAULT_WINDOWS = 16
_FEWEST_KEYS = 128
_MOST_GRAPHS = 256  # torch gives up compiling after 8 unless told; the shapes here are few by construction


Decode = Callable[[GPT, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


class SlotCache:
    """Keys and values of some slots at a time, where `Attention` looks for a `KVCache`.

    keys, values [B, L, H, S, K] are views of the backend's memory; positions [B, T] those of the new tokens.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        self._keys, self._values, self._positions = keys, values, positions
        self._rows = torch.arange(len(positions), device=positions.device)[:, None]  # [B, 1]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new k, v [B, H, T, K] at their positions; all keys and values of the layer [B, H, S, K]."""
        keys, values = self._keys[:, layer], self._values[:, layer]
        keys[self._rows, :, self._positions] = k.transpose(1, 2)
        values[self._rows, :, self._positions] = v.transpose(1, 2)
        return keys, values


def forward(
    model: GPT, ids: Tensor, positions: Tensor, keys: Tensor, values: Tensor, n_logits: int
) -> tuple[Tensor, Tensor]:
    """ids, positions [B, T], caches [B, L, H, S, K] -> (hidden [B, T, D], logits [B, n_logits, V])."""
    seen = torch.arange(keys.shape[3], device=ids.device)  # [S]
    this = Pass(
        compute_dtype=model.wte.weight.dtype,
        allowed=seen <= positions[:, None, :, None],  # [B, 1, T, S]
        cache=SlotCache(keys, values, positions),
        keep_attentions=False,
    )
    last = model.config.max_seq_len - 1  # an idle row may stand behind it
    x = model.embed(ids, positions.clamp(max=last))
    for block in model.h:
        x, _ = block(x, this)
    hidden: Tensor = model.ln_f(x, this.compute_dtype)
    return hidden, model.logits(hidden[:, hidden.shape[1] - n_logits :])


class TorchCompiled:
    """A `Backend` over one `GPT`, on whatever device and in whatever dtype the model is."""

    batch_invariant = False

    def __init__(self, model: GPT, *, n_pages: int | None = None) -> None:
        """`n_pages` of 16 positions; None: sixteen full windows. Memory grows with the sequences held."""
        self.model = model.eval()
        config = model.config
        pages_per_window = -(-config.max_seq_len // _PAGE_TOKENS)
        n_pages = _DEFAULT_WINDOWS * pages_per_window if n_pages is None else n_pages
        require(n_pages >= 1, f"n_pages = {n_pages} must be at least 1")
        self.capacity = Capacity(page_tokens=_PAGE_TOKENS, n_pages=n_pages)
        self._pages = PageLedger(self.capacity)
        # One position more than the window: rows that only fill up a graph write there.
        self._n_positions = config.max_seq_len + 1
        self._shape = (config.n_layers, config.n_heads, self._n_positions, config.d_head)
        self._keys, self._values = self._memory(0), self._memory(0)  # [slots, L, H, S, K]
        self._lengths: dict[int, int] = {}  # sequence -> positions held
        self._slots: dict[int, int] = {}
        self._reach: defaultdict[int, int] = defaultdict(
            int
        )  # slot -> positions ever written by its sequence
        self._handles = itertools.count()
        self._shapes: set[tuple[int, int]] = set()
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._decode: Decode = torch.compile(forward, fullgraph=True, dynamic=False)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    @property
    def d_model(self) -> int:
        return self.model.config.d_model

    @property
    def n_graphs(self) -> int:
        """Shapes of decode steps met so far; each is compiled once."""
        return len(self._shapes)

    def open(self) -> int:
        """See `Backend.open`."""
        handle, slot = next(self._handles), self._free_slot()
        self._pages.open(handle)
        self._slots[handle], self._lengths[handle] = slot, 0
        return handle

    def fork(self, sequence: int, n_tokens: int) -> int:
        """See `Backend.fork`. The positions are copied."""
        held = self._length(sequence)
        require(0 <= n_tokens <= held, f"{held} tokens are held, {n_tokens} cannot be taken over")
        self._pages.check(int(n_tokens % _PAGE_TOKENS > 0))
        handle, slot, origin = next(self._handles), self._free_slot(), self._slots[sequence]
        self._reach[slot] = n_tokens
        for memory in (self._keys, self._values):
            memory[slot, :, :, :n_tokens] = memory[origin, :, :, :n_tokens]
        self._pages.fork(sequence, handle, n_tokens)
        self._slots[handle], self._lengths[handle] = slot, n_tokens
        return handle

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """See `Backend.run`. Single tokens run together, in one graph."""
        require(len({c.sequence for c in chunks}) == len(chunks), "a sequence is named twice in one step")
        for chunk in chunks:
            self._check(chunk)
        lengths = [self._lengths[c.sequence] + len(c.token_ids) for c in chunks]
        self._pages.check(
            sum(self._pages.n_needed(c.sequence, n) for c, n in zip(chunks, lengths, strict=True))
        )
        for chunk, length in zip(chunks, lengths, strict=True):
            slot = self._slots[chunk.sequence]
            self._reach[slot] = max(self._reach[slot], length)
        single = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) == 1]
        results: dict[int, ChunkResult] = {}
        with torch.no_grad():
            if single:
                results |= zip(single, self._run_decodes([chunks[i] for i in single]), strict=True)
            results |= {i: self._run_prompt(c) for i, c in enumerate(chunks) if len(c.token_ids) > 1}
        for chunk, length in zip(chunks, lengths, strict=True):
            self._pages.grow(chunk.sequence, length)
            self._lengths[chunk.sequence] = length
        return [results[i] for i in range(len(chunks))]

    def release(self, sequence: int) -> None:
        """See `Backend.release`."""
        self._length(sequence)
        slot = self._slots[sequence]
        for memory in (self._keys, self._values):  # the next one there must not see what may not be finite
            memory[slot, :, :, : self._reach[slot] + 1] = 0
        self._reach[slot] = 0
        del self._lengths[sequence], self._slots[sequence]
        self._pages.release(sequence)

    def _run_decodes(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """One token each: all slots up to the last one needed, those without a token idling."""
        slots = [self._slots[c.sequence] for c in chunks]
        n_rows = _power_of_two(max(slots) + 1)  # there are as many: memory doubles
        # An idle row writes behind what its slot holds: at a place that is not seen before it is overwritten.
        held = {slot: self._lengths[sequence] for sequence, slot in self._slots.items() if slot < n_rows}
        places = [held.get(row, 0) for row in range(n_rows)]
        n_keys = min(_FEWEST_KEYS * _power_of_two(-(-(max(places) + 1) // _FEWEST_KEYS)), self._n_positions)
        ids = torch.zeros(n_rows, 1, dtype=torch.int64)
        ids[slots, 0] = torch.tensor([int(c.token_ids[0]) for c in chunks])
        hidden, logits = self._call(ids, torch.tensor(places)[:, None], n_keys)
        return [
            ChunkResult(
                logits=_numpy(logits[slot]) if chunk.n_logits else None,
                hidden=_numpy(hidden[slot]) if chunk.want_hidden else None,
            )
            for chunk, slot in zip(chunks, slots, strict=True)
        ]

    def _call(self, ids: Tensor, positions: Tensor, n_keys: int) -> tuple[Tensor, Tensor]:
        """`forward` of the first rows, compiled if it can be; ids and positions [B, 1] on the CPU."""
        shape = len(ids), n_keys
        self._shapes.add(shape)
        if self._keys.device.type != "cuda":
            return self._compiled(ids, positions, n_keys)
        if shape not in self._captured:
            self._captured[shape] = _Captured(self._compiled, ids, positions, n_keys, self._keys.device)
        return self._captured[shape].replay(ids, positions)

    def _compiled(self, ids: Tensor, positions: Tensor, n_keys: int) -> tuple[Tensor, Tensor]:
        keys, values = (memory[: len(ids), :, :, :n_keys] for memory in (self._keys, self._values))
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
            try:
                return self._decode(self.model, ids, positions, keys, values, 1)
            except torch._dynamo.exc.TorchDynamoException as error:
                what = " ".join(str(error).split("\n\n")[0].split())
                warnings.warn(f"torch.compile failed, going on without it: {what}", stacklevel=2)
                self._decode = forward
                return forward(self.model, ids, positions, keys, values, 1)

    def _run_prompt(self, chunk: Chunk) -> ChunkResult:
        slot, start = self._slots[chunk.sequence], self._lengths[chunk.sequence]
        device, end = self._keys.device, start + len(chunk.token_ids)
        ids = torch.tensor([list(chunk.token_ids)], device=device)
        positions = torch.arange(start, end, device=device)[None]
        keys, values = (memory[slot : slot + 1, :, :, :end] for memory in (self._keys, self._values))
        hidden, logits = forward(self.model, ids, positions, keys, values, chunk.n_logits)
        return ChunkResult(
            logits=_numpy(logits[0]) if chunk.n_logits else None,
            hidden=_numpy(hidden[0]) if chunk.want_hidden else None,
        )

    def _check(self, chunk: Chunk) -> None:
        """Raise ConfigError for a chunk that cannot be run, memory aside."""
        held, n_new = self._length(chunk.sequence), len(chunk.token_ids)
        require(n_new >= 1, "a chunk needs at least one token")
        require(0 <= chunk.n_logits <= n_new, f"n_logits = {chunk.n_logits} is not in 0..{n_new}")
        require(
            held + n_new <= self.max_seq_len,
            f"{held} tokens held and {n_new} new do not fit the context window of {self.max_seq_len}",
        )
        check_ids("token id", torch.tensor(list(chunk.token_ids)), self.vocab_size, "the vocabulary")

    def _length(self, sequence: int) -> int:
        require(
            sequence in self._lengths, f"no sequence has the handle {sequence}; it was released or never made"
        )
        return self._lengths[sequence]

    def _free_slot(self) -> int:
        """The lowest, with more memory if there is none."""
        slot = next(i for i in itertools.count() if i not in self._slots.values())
        if slot == len(self._keys):
            keys, values = (torch.cat([m, self._memory(max(1, slot))]) for m in (self._keys, self._values))
            self._keys, self._values = keys, values  # both or none
            self._captured.clear()  # they know the old addresses
        return slot

    def _memory(self, n_slots: int) -> Tensor:
        """Zeros, not whatever was there: what is masked must still be finite."""
        weight = self.model.wte.weight
        return torch.zeros(n_slots, *self._shape, dtype=weight.dtype, device=weight.device)


class _Captured:
    """One shape of decode step as a CUDA graph: its inputs are copied into place, then it is replayed."""

    def __init__(
        self,
        run: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
        ids: Tensor,
        positions: Tensor,
        n_keys: int,
        device: torch.device,
    ) -> None:
        self._ids, self._positions = ids.to(device), positions.to(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # compiled, and its memory there, before anything is captured
            for _ in range(2):
                run(self._ids, self._positions, n_keys)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = run(self._ids, self._positions, n_keys)

    def replay(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs; the next replay overwrites them."""
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._graph.replay()
        return self._out


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _numpy(rows: Tensor) -> LogitRows:
    return rows.float().cpu().numpy()
