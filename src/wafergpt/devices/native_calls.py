"""What the native training kernels of `ops.cpu` cost. PyTorch does not see them: their calls are watched."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wafergpt.devices.operators import Cost, attention, attention_backward, pointwise, product
from wafergpt.wafer.workload import FLOPS_PER, OpKind

_Numbers = Sequence[int]

# Kernels that a program may ask anything of; they compute nothing.
QUESTIONS = frozenset({"wg_attention_supported", "wg_int8_supported"})


def _rows_of_logits(n: int, vocab_size: int) -> Cost:
    """Loss and its gradient by the logits in one pass."""
    per = sum(FLOPS_PER[OpKind.CROSS_ENTROPY])
    n_all = n * vocab_size
    return Cost(
        kind=OpKind.CROSS_ENTROPY, n=vocab_size, n_elements=n_all, n_flops=float(per * n_all), reads=n_all
    )


def _one(kind: OpKind, n_elements: int, *, backward: bool = False, reads: int | None = None) -> tuple[Cost]:
    read = n_elements if reads is None else reads
    return (pointwise(kind, n_elements, backward=backward, reads=read),)


# Kernel -> costs, from its integer arguments in the order of its signature (pointers and floats left out).
COSTS: dict[str, Callable[[_Numbers], tuple[Cost, ...]]] = {
    "wg_layer_norm_bf16": lambda a: _one(OpKind.LAYER_NORM, a[0] * a[1]),
    "wg_layer_norm_backward_bf16": lambda a: _one(OpKind.LAYER_NORM, a[0] * a[1], backward=True),
    "wg_column_sum_bf16": lambda a: _one(OpKind.REDUCE, a[1], reads=a[0] * a[1]),
    "wg_attention": lambda a: attention(a[0] * a[2], a[1], a[1], a[3], a[3]),
    "wg_attention_backward": lambda a: attention_backward(a[0] * a[2], a[1], a[1], a[3], a[3]),
    "wg_gelu_bf16": lambda a: _one(OpKind.GELU, a[0]),
    "wg_gelu_backward_bf16": lambda a: _one(OpKind.GELU, a[0], backward=True),
    "wg_int8_pack": lambda a: _one(OpKind.MOVE, a[0] * a[1]),
    "wg_int8_pack_transposed": lambda a: _one(OpKind.MOVE, a[0] * a[1]),
    "wg_int8_quantize_rows": lambda a: _one(OpKind.MOVE, a[0] * a[1]),
    "wg_int8_quantize_transposed": lambda a: _one(OpKind.MOVE, a[0] * a[1]),
    "wg_int8_gemm": lambda a: (product(a[0], a[2], a[1]),),
    "wg_cross_entropy_bf16": lambda a: (_rows_of_logits(a[0], a[1]),),
    "wg_accumulate_bf16": lambda a: _one(OpKind.ELEMENTWISE, a[0]),
    "wg_add_at_labels_bf16": lambda a: _one(OpKind.ELEMENTWISE, a[0]),
    "wg_adamw": lambda a: _one(OpKind.OPTIMIZER, a[1]),
    "wg_sum_of_squares": lambda a: _one(OpKind.REDUCE, 1, reads=a[1]),
}
PHASES = {"wg_adamw": "optimizer", "wg_sum_of_squares": "backward"}  # whatever the moment of the call
_PACKS = frozenset({"wg_int8_pack", "wg_int8_pack_transposed"})
_PACKED_AT = 3  # position of the packed factor among the pointers of wg_int8_gemm


@dataclass(frozen=True)
class NativeCall:
    """One call: its costs, the addresses it was given, and a phase if the kernel has one of its own."""

    name: str
    costs: tuple[Cost, ...]
    pointers: tuple[int, ...]
    phase: str | None
    shapes: str


@dataclass
class Library:
    """The kernels' library with every call but questions handed to `around` together with what to run."""

    library: ctypes.CDLL
    around: Callable[[NativeCall, Callable[[], Any]], Any]
    packed: dict[int, int] = field(
        default_factory=dict
    )  # address of a packed factor -> of what it was packed from

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.library, name)
        if name in QUESTIONS:
            return kernel

        def call(*arguments: Any) -> Any:
            return self.around(self.read(name, arguments), lambda: kernel(*arguments))

        return call

    def read(self, name: str, arguments: Sequence[Any]) -> NativeCall:
        """What a call with these ctypes arguments is. A kernel without an entry in `COSTS` is a KeyError."""
        numbers = [a.value for a in arguments if isinstance(a, ctypes.c_int64 | ctypes.c_int)]
        pointers = tuple(a.value or 0 for a in arguments if isinstance(a, ctypes.c_void_p))
        costs = COSTS[name](numbers)
        if name in _PACKS:
            self.packed[pointers[1]] = pointers[0]
        if name == "wg_int8_gemm":  # a gradient's factors are packed too, and are no parameters
            source = self.packed.get(pointers[_PACKED_AT], 0)
            pointers = (source,)
            m, k, n = costs[0].m, costs[0].k, costs[0].n
            costs = (replace(costs[0], reads=m * k + k * n),)
        shapes = " ".join(str(n) for n in numbers)
        return NativeCall(name, costs, pointers, PHASES.get(name), shapes)
