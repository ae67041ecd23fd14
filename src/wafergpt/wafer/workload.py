"""What a wafer is asked to do, as a list of operators: captured from a program, or described from a shape.

FLOPs: a multiply-accumulate is two. Attention counts whole windows, a mask halves nothing, and nothing that
autograd recomputes is left out of a captured workload. The other operators count by element, `FLOPS_PER`.
Bytes are of the wafer's number format, see `Workload.dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from wafergpt.config import require
from wafergpt.wafer.analytic.shape import Shape


class OpKind(StrEnum):
    """What an operator is to the wafer. VIEW costs nothing; HOST has no program and runs on the host."""

    MATMUL = "matmul"
    EMBEDDING = "embedding"
    LAYER_NORM = "layer_norm"
    SOFTMAX = "softmax"
    GELU = "gelu"
    ELEMENTWISE = "elementwise"
    REDUCE = "reduce"
    CROSS_ENTROPY = "cross_entropy"
    OPTIMIZER = "optimizer"
    MOVE = "move"
    VIEW = "view"
    HOST = "host"


PHASES = ("initialisation", "forward", "backward", "optimizer")

# FLOPs per element of (forward, backward). Softmax: maximum, difference, exp, sum, quotient; backward y dy,
# its sum, difference, product: together the 9 per score of the Cerebras-GPT paper's count (model/config.py).
# LayerNorm, GELU and AdamW: operations of their definitions, each function (exp, erf, root, quotient) as one.
FLOPS_PER: dict[OpKind, tuple[int, int]] = {
    OpKind.ELEMENTWISE: (1, 1),
    OpKind.REDUCE: (1, 1),
    OpKind.SOFTMAX: (5, 4),
    OpKind.CROSS_ENTROPY: (5, 4),
    OpKind.LAYER_NORM: (7, 12),
    OpKind.GELU: (5, 8),
    OpKind.OPTIMIZER: (14, 14),
}
WORD_BYTES = {"fp16": 2, "cb16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator, `count` times. Sizes, FLOPs, bytes and seconds are of one execution.

    MATMUL is `batch` independent products [m, k] x [k, n]; n of CROSS_ENTROPY is the vocabulary's width;
    otherwise m, k, n are 0. `in_bytes`: bytes read, those of parameters included, for a look-up only the rows
    read; `weight_bytes`: bytes of the parameters among the inputs, which are streamed or resident. `host_s`:
    what the host took, measured; 0 if it was not.
    """

    name: str
    kind: OpKind
    phase: str = "forward"
    m: int = 0
    k: int = 0
    n: int = 0
    batch: int = 1
    n_elements: int = 0
    n_flops: float = 0.0
    in_bytes: float = 0.0
    out_bytes: float = 0.0
    weight_bytes: float = 0.0
    weight_names: tuple[str, ...] = ()
    shapes: str = ""
    dtype: str = ""
    count: int = 1
    host_s: float = 0.0

    def __post_init__(self) -> None:
        require(self.phase in PHASES, f"phase '{self.phase}' is unknown; allowed: {', '.join(PHASES)}")
        require(self.count > 0, f"count = {self.count} of {self.name} must be above zero")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Operators in their order, and what they belong to.

    `n_samples`, `n_tokens`: rows and positions that went through the model; `n_rows_at_once`: rows that were
    on the machine together. `activation_bytes_peak`: most bytes of forward results alive at a time.
    `dtype`: the wafer's number format (fp16, cb16, bf16, fp32), which sets the bytes.
    """

    ops: tuple[Op, ...]
    n_samples: int
    n_tokens: int
    n_parameters: int
    parameters_bytes: float
    activation_bytes_peak: float
    description: str = ""
    dtype: str = "cb16"
    n_rows_at_once: int = 1

    def n_flops(self, kind: OpKind | None = None, phase: str | None = None) -> float:
        """FLOPs of everything, or of one kind, one phase, or both."""
        return math.fsum(op.n_flops * op.count for op in self.select(kind, phase))

    def select(self, kind: OpKind | None = None, phase: str | None = None) -> Iterator[Op]:
        """The operators of a kind and of a phase; None: of all."""
        for op in self.ops:
            if kind in (None, op.kind) and phase in (None, op.phase):
                yield op

    def flops_by_kind(self) -> dict[OpKind, float]:
        """Kind -> FLOPs, of the kinds that occur."""
        kinds = dict.fromkeys(op.kind for op in self.ops)
        return {kind: self.n_flops(kind) for kind in kinds}

    def scaled(self, times: int) -> Workload:
        """The same work `times` over, one after the other: counts, samples, tokens grow, memory does not."""
        require(times > 0, f"times = {times} must be above zero")
        return replace(
            self,
            ops=tuple(replace(op, count=op.count * times) for op in self.ops),
            n_samples=self.n_samples * times,
            n_tokens=self.n_tokens * times,
        )


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """A decoder of equal layers, the head tied to the embedding.

    Not gated: GPT-2's form, with biases, LayerNorms and learned positions. Gated: LLaMA's, three FFN
    matrices, norms without biases, no parameters for positions.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_ffn: int
    vocab_size: int
    max_seq_len: int
    gated_ffn: bool = False

    def __post_init__(self) -> None:
        require(self.d_model % self.n_heads == 0, f"d_model = {self.d_model}, n_heads = {self.n_heads}")
        require(self.n_heads % self.n_kv_heads == 0, f"{self.n_heads} heads share {self.n_kv_heads} keys")

    @classmethod
    def of(cls, name: str, shape: Shape, max_seq_len: int) -> TransformerShape:
        """The closed forms' shape with a name and a window."""
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ffn", "gated_ffn")
        same = {each: getattr(shape, each) for each in names}
        return cls(name=name, vocab_size=shape.vocab, max_seq_len=max_seq_len, **same)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values together."""
        return self.d_head * (self.n_heads + 2 * self.n_kv_heads)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of one layer's matrices; gate and up projection stand side by side."""
        up = (2 if self.gated_ffn else 1) * self.d_ffn
        return {
            "attn.c_attn": (self.d_model, self.qkv_width),
            "attn.c_proj": (self.d_model, self.d_model),
            "mlp.c_fc": (self.d_model, up),
            "mlp.c_proj": (self.d_ffn, self.d_model),
        }

    @property
    def n_parameters(self) -> int:
        """Values of all parameters; the head is the embedding and counts once."""
        matrices = sum(k * n for k, n in self.matrices.values())
        biases = 0 if self.gated_ffn else sum(n for _, n in self.matrices.values())
        norm = (1 if self.gated_ffn else 2) * self.d_model
        positions = 0 if self.gated_ffn else self.max_seq_len
        layers = self.n_layers * (matrices + biases + 2 * norm)
        return layers + norm + (self.vocab_size + positions) * self.d_model


@dataclass(frozen=True, kw_only=True)
class _Describer:
    """Makes operators for `rows` sequences of `new` positions that see `seen` positions each."""

    shape: TransformerShape
    rows: int
    new: int
    seen: int
    word: int

    @property
    def n_tokens(self) -> int:
        return self.rows * self.new

    def product(
        self,
        name: str,
        k: int,
        n: int,
        *,
        tokens: int,
        of: Op | None = None,
        batch: int = 1,
        weighs: bool = True,
    ) -> Op:
        """tokens x k times k x n. `weighs`: the right factor is a parameter. `of`: whose gradient it is."""
        moved = batch * self.word
        return Op(
            name=name,
            kind=OpKind.MATMUL,
            phase="forward" if of is None else "backward",
            m=tokens,
            k=k,
            n=n,
            batch=batch,
            n_elements=batch * tokens * n,
            n_flops=2.0 * batch * tokens * k * n,
            in_bytes=moved * (tokens * k + k * n),
            out_bytes=moved * tokens * n,
            weight_bytes=moved * k * n if weighs else 0,
            weight_names=(name if of is None else of.name,) if weighs else (),
            shapes=f"[{batch}, {tokens}, {k}] [{batch}, {k}, {n}]",
        )

    def pointwise(
        self, name: str, kind: OpKind, n_elements: int, phase: str = "forward", *, n_in: int = 0
    ) -> Op:
        """An operator that reads `n_in` elements (default: as many as it writes) and counts FLOPs by them."""
        n_in = n_in or n_elements
        per = FLOPS_PER.get(kind, (0, 0))[phase == "backward"]
        return Op(
            name=name,
            kind=kind,
            phase=phase,
            n_elements=n_elements,
            n_flops=float(per * n_in),
            in_bytes=self.word * n_in,
            out_bytes=self.word * n_elements,
            shapes=f"[{n_in}]",
        )

    def layer(self) -> list[Op]:
        """The forward pass of one layer."""
        s, t = self.shape, self.n_tokens
        scores = self.rows * s.n_heads
        return [
            self.pointwise("ln_1", OpKind.LAYER_NORM, t * s.d_model),
            self.product("attn.c_attn", s.d_model, s.qkv_width, tokens=t),
            self.product("attn.scores", s.d_head, self.seen, tokens=self.new, batch=scores, weighs=False),
            self.pointwise("attn.softmax", OpKind.SOFTMAX, scores * self.new * self.seen),
            self.product("attn.mix", self.seen, s.d_head, tokens=self.new, batch=scores, weighs=False),
            self.product("attn.c_proj", s.d_model, s.d_model, tokens=t),
            self.pointwise("residual", OpKind.ELEMENTWISE, t * s.d_model),
            self.pointwise("ln_2", OpKind.LAYER_NORM, t * s.d_model),
            self.product("mlp.c_fc", *s.matrices["mlp.c_fc"], tokens=t),
            self.pointwise("mlp.act", OpKind.GELU, t * s.d_ffn),
            *([self.pointwise("mlp.gate", OpKind.ELEMENTWISE, t * s.d_ffn)] if s.gated_ffn else []),
            self.product("mlp.c_proj", s.d_ffn, s.d_model, tokens=t),
            self.pointwise("residual", OpKind.ELEMENTWISE, t * s.d_model),
        ]

    def layers(self) -> list[Op]:
        """The forward pass of all layers: one layer's operators, as often."""
        return [replace(op, count=self.shape.n_layers) for op in self.layer()]

    def look_ups(self, phase: str = "forward") -> list[Op]:
        """Token and position embedding and their sum, or the gradients of the two tables."""
        tables = ["wte"] if self.shape.gated_ffn else ["wte", "wpe"]
        n = self.n_tokens * self.shape.d_model
        found = [self.pointwise(name, OpKind.EMBEDDING, n, phase) for name in tables]
        if len(tables) == 2 and phase == "forward":
            found += [self.pointwise("embed.add", OpKind.ELEMENTWISE, n)]
        return found

    def head(self, tokens: int) -> list[Op]:
        """The last norm of every position and the logits of `tokens` of them."""
        s = self.shape
        norm = self.pointwise("ln_f", OpKind.LAYER_NORM, self.n_tokens * s.d_model)
        return [norm, self.product("head", s.d_model, s.vocab_size, tokens=tokens)]

    def backward(self, op: Op) -> list[Op]:
        """What the gradient of `op` takes. A product needs two: by its input and by its weight."""
        if op.kind is not OpKind.MATMUL:
            found = [self.pointwise(f"{op.name}.dx", op.kind, op.n_elements, "backward")]
        else:
            weighs = bool(op.weight_bytes)
            found = [
                self.product(f"{op.name}.dx", op.n, op.k, tokens=op.m, of=op, batch=op.batch, weighs=weighs),
                self.product(f"{op.name}.dw", op.m, op.n, tokens=op.k, of=op, batch=op.batch, weighs=False),
            ]
            if weighs and op.name != "head" and not self.shape.gated_ffn:
                found += [
                    self.pointwise(f"{op.name}.db", OpKind.REDUCE, op.n, "backward", n_in=op.n_elements)
                ]
        return [replace(gradient, count=op.count) for gradient in found]

    def update(self) -> Op:
        """AdamW of every parameter, in 32 bits wherever the optimiser lives."""
        return self.pointwise("adamw", OpKind.OPTIMIZER, self.shape.n_parameters, "optimizer")


def describe_transformer(
    shape: TransformerShape,
    *,
    batch: int,
    seq_len: int,
    mode: str = "train",
    context: int | None = None,
    dtype: str = "cb16",
) -> Workload:
    """The operators of one step of a transformer.

    `train`: forward with loss, backward and AdamW on `batch` sequences of `seq_len`. `prefill`: forward of as
    many, logits of the last position. `decode`: one position each, `context` positions in the cache (default:
    seq_len). Raises ConfigError for another mode, dtype or a size below one.
    """
    modes: dict[str, Callable[[_Describer], list[Op]]] = {
        "train": _training, "prefill": _inference, "decode": _inference,
    }  # fmt: skip
    require(mode in modes, f"mode '{mode}' is unknown; allowed: {', '.join(modes)}")
    require(dtype in WORD_BYTES, f"dtype '{dtype}' is unknown; allowed: {', '.join(WORD_BYTES)}")
    seen = seq_len if context is None else context
    require(
        min(batch, seq_len, seen) > 0, f"batch {batch}, seq_len {seq_len}, context {seen}: must be above 0"
    )
    is_decode = mode == "decode"
    describer = _Describer(
        shape=shape,
        rows=batch,
        new=1 if is_decode else seq_len,
        seen=seen if is_decode else seq_len,
        word=WORD_BYTES[dtype],
    )
    return Workload(
        ops=tuple(modes[mode](describer)),
        n_samples=batch,
        n_tokens=describer.n_tokens,
        n_parameters=shape.n_parameters,
        parameters_bytes=float(describer.word * shape.n_parameters),
        activation_bytes_peak=float(describer.word * _activations(describer, mode)),
        description=f"{shape.name}, {mode}, batch {batch}, {describer.seen} positions",
        dtype=dtype,
        n_rows_at_once=batch,
    )


def _training(by: _Describer) -> list[Op]:
    forward = [*by.layers(), *by.head(by.n_tokens)]
    vocab_size = by.shape.vocab_size
    loss = replace(by.pointwise("loss", OpKind.CROSS_ENTROPY, by.n_tokens * vocab_size), n=vocab_size)
    differentiated = [op for op in (*forward, loss) if op.name != "residual"]  # a sum passes gradients on
    backward = [gradient for op in reversed(differentiated) for gradient in by.backward(op)]
    return [*by.look_ups(), *forward, loss, *backward, *by.look_ups("backward"), by.update()]


def _inference(by: _Describer) -> list[Op]:
    return [*by.look_ups(), *by.layers(), *by.head(by.rows)]


def _activations(by: _Describer, mode: str) -> int:
    """Elements alive at the peak: training keeps all layers' results, inference one layer's and the cache."""
    s = by.shape
    layer = by.n_tokens * (5 * s.d_model + s.qkv_width + (4 if s.gated_ffn else 2) * s.d_ffn)
    if mode == "train":
        return s.n_layers * layer + by.n_tokens * (s.d_model + 2 * s.vocab_size)
    cache = 2 * s.n_layers * by.rows * by.seen * s.d_head * s.n_kv_heads
    return layer + cache + by.rows * s.vocab_size
