"""A whole GPT resident on one mesh: its weights in the PEs' memory, token ids in, token ids out.

A vector of d elements is either *by column* (PE (x, y) has part x: every row has all of it) or *by row*
(part y). A product takes one kind and gives the other: local tiles, then an all-reduce along the rows (by
column in, by row out) or down the columns (by row in, by column out). Products alternate, so nothing is ever
transposed. The residual stream is by column; q, k, v, the attention's result, the FFN's inner vector and the
logits are by row.

The host copies weights and prompt in, launches once, and copies token ids out: all arithmetic is in the
PEs' programs, and so are the choice of the next token and its way back to the embedding. Prompt tokens go
through the same program one by one; of their logits only the last token's are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine.code import Code
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.operands import Array, Reg
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.allreduce import AllReduce
from wafergpt.wafer.programs.attention import Attention, CacheShape
from wafergpt.wafer.programs.embedding import Embedding
from wafergpt.wafer.programs.gelu import emit_gelu
from wafergpt.wafer.programs.head import Head
from wafergpt.wafer.programs.layernorm import LayerNorm
from wafergpt.wafer.programs.placement import GPTShape, Placed, place_weights, placements
from wafergpt.wafer.programs.streams import Stream, TileProducts


class _Linear:
    """W x + b, reduced along `line`; tiles and bias parts of all layers in memory, taken in turn."""

    def __init__(self, code: Code, line: AllReduce, name: str, sizes: tuple[int, int], n_layers: int) -> None:
        m, k = sizes
        self._code, self.line = code, line
        self._tiles = TileProducts(code, code.array(f"{name}.weight", n_layers * m * k), m)
        self._bias = Stream(code, code.array(f"{name}.bias", n_layers * m), m)
        self._lane = line.lane(m)

    def emit(self, y: Array, x: Array, *, to_first: bool = False) -> None:
        """y [m] = W x + b for the next layer; `to_first`: right in the line's first PE only."""
        self._tiles.emit(y, x)
        self.line.reduce(y, self._lane)
        if not to_first:
            self.line.spread(y, self._lane)
        self._code.add(y, y, self._bias.view)
        self._bias.next()

    def rewind(self) -> None:
        """Back to the first layer."""
        self._tiles.rewind()
        self._bias.rewind()


class _Norms:
    """The LayerNorms of the model in the order in which they come."""

    def __init__(self, code: Code, rows: AllReduce, n: int, shape: GPTShape) -> None:
        n_norms = 2 * shape.n_layers + 1
        self._norm = LayerNorm(code, rows, n, shape.layer_norm_eps)
        self._gain = Stream(code, code.array("ln.weight", n_norms * n), n)
        self._bias = Stream(code, code.array("ln.bias", n_norms * n), n)

    def emit(self, y: Array, x: Array) -> None:
        """y = the next LayerNorm of x."""
        self._norm.emit(y, x, self._gain.view, self._bias.view)
        self._gain.next()
        self._bias.next()

    def rewind(self) -> None:
        """Back to the first."""
        self._gain.rewind()
        self._bias.rewind()


class _Model:
    """Arrays, routes and instructions of the role that all PEs run."""

    def __init__(self, program: Program, shape: GPTShape, *, keep_logits: bool) -> None:
        self.code = code = program.role("gpt")
        self.shape, self.keep_logits = shape, keep_logits
        width, height, n_layers = program.width, program.height, shape.n_layers
        by_x, by_y = shape.d_model // width, shape.d_model // height
        inner, vocabulary = shape.d_ffn // height, shape.vocab_size // height
        self.row, self.n_prompt, self.n_steps = (code.param(name) for name in ("row", "n_prompt", "n_steps"))
        self.tokens = code.array("tokens", shape.n_positions + 1, "i32")
        self.ends = code.array("ends", shape.n_positions, "i32")
        self.h, self.normed, self.delta = (code.array(name, by_x) for name in ("h", "normed", "delta"))
        self.qkv, self.attended = code.array("qkv", 3 * by_y), code.array("attended", by_y)
        self.hidden, self.scratch = code.array("hidden", inner), code.array("scratch", inner)
        self.logits = code.array("logits", vocabulary)
        self.history = code.array("logits of all steps", shape.n_positions * vocabulary if keep_logits else 1)
        wte = code.array("wte", vocabulary * by_x)
        wpe = code.array("wpe", shape.n_positions // height * by_x)
        self.rows = rows = AllReduce(program, code, "x", "row")
        self.columns = columns = AllReduce(program, code, "y", "column")
        self.query_lane = rows.lane(by_y)
        self.embedding = Embedding(code, columns, (wte, wpe), self.row, n=by_x)
        self.norms = _Norms(code, rows, by_x, shape)
        cache = CacheShape(n_layers=n_layers, n_slots=-(-shape.n_positions // width), n=by_y)
        scale = shape.attention_scale
        self.attention = Attention(program, code, rows, cache, n_heads=shape.n_heads, scale=scale)
        self.c_attn = _Linear(code, rows, "attn.c_attn", (3 * by_y, by_x), n_layers)
        self.attn_out = _Linear(code, columns, "attn.c_proj", (by_x, by_y), n_layers)
        self.c_fc = _Linear(code, rows, "mlp.c_fc", (inner, by_x), n_layers)
        self.ffn_out = _Linear(code, columns, "mlp.c_proj", (by_x, inner), n_layers)
        self.head = Head(code, (rows, columns), wte, self.logits, self.row)
        self._write_tasks()

    def _write_tasks(self) -> None:
        code = self.code
        with code.task("generate"):
            self.attention.clear()
            with code.regs(1) as (n_steps,):
                code.load(n_steps, self.n_steps)
                with code.loop(n_steps) as position:
                    self._step(position)
            code.done()
        with code.task("prepare"):
            self.rows.prepare()
            self.columns.prepare()
            self.attention.prepare()
            code.done()

    def _step(self, position: Reg) -> None:
        """One token through all layers; the next one is written behind it, unless the prompt goes on."""
        code, shape = self.code, self.shape
        code.phase = "embedding"
        for part in (self.norms, self.c_attn, self.attn_out, self.c_fc, self.ffn_out):
            part.rewind()
        with code.regs(1) as (token,):
            code.load(token, self.tokens, position)
            self.embedding.emit(self.h, token, position, shape.embedding_multiplier)
        code.phase = "attention"
        self.attention.begin(position)
        with code.loop(shape.n_layers) as layer:
            self._layer(layer)
        code.phase = "head"
        with code.regs(1) as (last,):
            code.load(last, self.n_prompt)
            code.isub(last, last, 1)
            with code.if_(position, ">=", last):
                self._choose(position)
        low = code.pair()
        code.counter(low[0])
        code.store(self.ends, low[0], position)
        code.release(*low)

    def _layer(self, layer: Reg) -> None:
        code = self.code
        code.phase = "layer norm"
        self.norms.emit(self.normed, self.h)
        code.phase = "attention"
        self.c_attn.emit(self.qkv, self.normed, to_first=True)
        self.rows.spread(self.qkv[: self.attended.length], self.query_lane)
        self.attention.emit(self.attended, self.qkv, layer)
        self.attn_out.emit(self.delta, self.attended)
        code.add(self.h, self.h, self.delta)
        code.phase = "layer norm"
        self.norms.emit(self.normed, self.h)
        code.phase = "ffn"
        self.c_fc.emit(self.hidden, self.normed)
        emit_gelu(code, self.hidden, self.scratch, self.shape.gelu)
        self.ffn_out.emit(self.delta, self.hidden)
        code.add(self.h, self.h, self.delta)

    def _choose(self, position: Reg) -> None:
        """Logits of the position and the token that follows it."""
        code = self.code
        self.norms.emit(self.normed, self.h)
        self.head.emit_logits(self.normed, self.shape.logits_multiplier)
        if self.keep_logits:
            n = self.logits.length
            kept = code.view(self.history, 0, n)
            with code.regs(1) as (at,):
                code.imul(at, position, 4 * n)
                code.iadd(at, at, self.history.address)
                code.set(kept, "base", at)
            code.mov(kept, self.logits)
        with code.regs(2) as (token, after):
            self.head.emit_argmax(token)
            code.iadd(after, position, 1)
            code.store(self.tokens, token, after)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """tokens: the new ones. logits [n_new, V] float32, in whose order they were chosen, if they were kept.

    cycles: of the launch, prompt included; token_cycles: of each step (prompt tokens first); wavelets: links
    crossed, all PEs.
    """

    tokens: tuple[int, ...]
    logits: NDArray[np.float32] | None
    cycles: int
    token_cycles: tuple[int, ...]
    wavelets: int


class MeshGPT:
    """A GPT on a mesh of width x height PEs.

    weights: GPT-2's names ("wte.weight", "h.0.attn.c_attn.weight" [out, in], ...), float32. Raises
    ProgramError where the shape does not divide into the mesh, SramOverflowError where it does not fit.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        shape: GPTShape,
        *,
        width: int = 16,
        height: int = 16,
        keep_logits: bool = False,
        engine: str = "auto",
        threads: int = 1,
    ) -> None:
        shape.check(width, height)
        self.shape = shape
        program = Program(width, height)
        model = _Model(program, shape, keep_logits=keep_logits)
        self.machine = Machine(program, engine=engine, threads=threads)
        self.n_colors = len(program.colors)
        self.sram_bytes = max(self.machine.image.sram_bytes)
        for part in (model.rows, model.columns, model.attention):
            part.load(self.machine)
        for name, tiles in place_weights(weights, shape, width, height).items():
            self.machine.memcpy_h2d(name, tiles)
        self.machine.memcpy_h2d("row", [[y] * width for y in range(height)])
        self.machine.launch("prepare")

    def placement(self) -> tuple[Placed, ...]:
        """Which PE holds which part of every weight."""
        return placements(self.shape, self.machine.image.width, self.machine.image.height)

    def generate(self, prompt: Sequence[int], n_new: int) -> Generated:
        """Greedy continuation of `prompt` by `n_new` tokens; raises ProgramError if they do not fit."""
        machine, shape = self.machine, self.shape
        n_steps = len(prompt) + n_new - 1
        if not prompt or n_new < 1 or n_steps > shape.n_positions:
            raise ProgramError(f"{len(prompt)} and {n_new} tokens in {shape.n_positions} positions")
        if not all(0 <= token < shape.vocab_size for token in prompt):
            raise ProgramError(f"a token of the prompt is not in 0..{shape.vocab_size - 1}")
        room = shape.n_positions + 1 - len(prompt)
        machine.memcpy_h2d("tokens", [[[*prompt, *([0] * room)]]])
        everywhere = (machine.image.height, machine.image.width)
        machine.memcpy_h2d("n_prompt", np.broadcast_to(len(prompt), everywhere))
        machine.memcpy_h2d("n_steps", np.broadcast_to(n_steps, everywhere))
        before = int(machine.state.link_wavelets[:, :4].sum())
        launch = machine.launch("generate")
        tokens = machine.memcpy_d2h("tokens")[0, 0]
        ends = machine.memcpy_d2h("ends")[0, 0, :n_steps].tolist()
        starts = [launch.start_cycle, *ends[:-1]]
        return Generated(
            tokens=tuple(tokens[len(prompt) : n_steps + 1].tolist()),
            logits=self._logits(len(prompt) - 1, n_steps),
            cycles=launch.cycles,
            token_cycles=tuple(end - start for start, end in zip(starts, ends, strict=True)),
            wavelets=int(machine.state.link_wavelets[:, :4].sum()) - before,
        )

    def _logits(self, first: int, last: int) -> NDArray[np.float32] | None:
        """Of the steps first..last - 1 [n, V], from the first column's PEs."""
        kept = self.machine.memcpy_d2h("logits of all steps")[:, 0]
        if kept.shape[1] == 1:
            return None
        by_step = kept.reshape(kept.shape[0], self.shape.n_positions, -1)[:, first:last]
        return by_step.transpose(1, 0, 2).reshape(last - first, self.shape.vocab_size)
