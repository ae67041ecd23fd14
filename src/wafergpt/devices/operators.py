"""Which operator of PyTorch is what to the wafer, and what it costs: one explicit table.

Names are ATen's without namespace and without the `_` of in-place forms. An operator that is not here has no
mapping and runs on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wafergpt.wafer.workload import FLOPS_PER, OpKind


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one operator takes, or one part of a fused one, e.g. the scores of an attention.

    `reads`: elements read, where that is not what the inputs hold; `holds_weight`: whether the parameters
    among the inputs belong to this part.
    """

    kind: OpKind
    part: str = ""
    m: int = 0
    k: int = 0
    n: int = 0
    batch: int = 1
    n_elements: int = 0
    n_flops: float = 0.0
    reads: int | None = None
    holds_weight: bool = True


@dataclass(frozen=True, kw_only=True)
class Call:
    """One executed operator: its arguments by position and name, and what came out."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position`, or by `name`."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def n_out(self) -> int:
        """Elements of all results."""
        return sum(size_of(x) for x in self.outputs)

    @property
    def is_mapped(self) -> bool:
        """Whether the wafer has a program for it."""
        return is_mapped_on(self.name, (*self.inputs, *self.outputs))


def size_of(x: Tensor) -> int:
    """Elements of x; of a nested tensor those of all its rows."""
    return x.values().numel() if x.is_nested and x.layout == torch.jagged else x.numel()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nothing moves: another view of the same memory, or memory without a value.
VIEWS = _names(
    """_unsafe_view _reshape_alias _conj _neg_view alias as_strided chunk detach diagonal empty empty_like
    empty_strided empty_permuted expand lift lift_fresh narrow new_empty new_empty_strided permute real imag
    select set set_data slice split split_with_sizes squeeze t transpose unbind unfold unsafe_split unsqueeze
    view view_as_complex view_as_real resize resize_as record_stream is_same_size"""
)
ELEMENTWISE = _names(
    """_adaptive_avg_pool2d abs acos acosh add addcdiv addcmul arange asin asinh atan atan2 atanh avg_pool2d
    bernoulli binary_cross_entropy_with_logits bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor ceil clamp clamp_max clamp_min clip copysign cos cosh div elu elu_backward
    eq erf erfc exp exp2 expm1 exponential eye fill floor floor_divide fmax fmin fmod frac full full_like ge
    glu glu_backward gt hardsigmoid hardsigmoid_backward hardswish hardswish_backward hardtanh
    hardtanh_backward heaviside huber_loss_backward isfinite isin isinf isnan isneginf isposinf leaky_relu
    leaky_relu_backward le lerp linspace log log10 log1p log2 log_sigmoid_backward log_sigmoid_forward
    logaddexp logical_and logical_not logical_or logical_xor lt masked_fill maximum max_pool2d_with_indices
    max_pool2d_with_indices_backward
    minimum mish mish_backward mse_loss_backward mul nan_to_num native_dropout native_dropout_backward ne neg
    new_full new_ones new_zeros normal ones ones_like pow rand rand_like randint randint_like randn randn_like
    reciprocal relu relu6 remainder round rsqrt rsub scalar_tensor selu sgn sigmoid sigmoid_backward sign
    signbit silu silu_backward sin sinh smooth_l1_loss_backward softplus softplus_backward sqrt square sub tan
    tanh tanh_backward threshold threshold_backward tril triu trunc uniform where xlogy zero zeros zeros_like
    __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__"""
)
REDUCE = _names(
    """_is_all_true _is_any_true all amax amin aminmax any argmax argmin count_nonzero cummax cummin cumprod
    cumsum equal huber_loss linalg_vector_norm logcumsumexp logsumexp max mean min mse_loss nansum norm prod
    smooth_l1_loss std std_mean sum var var_mean binary_cross_entropy _linalg_check_errors is_nonzero"""
)
MOVE = _names(
    """_local_scalar_dense _to_copy cat clone constant_pad_nd copy copy_to flip gather index index_add
    index_copy index_fill index_put _index_put_impl _unsafe_index _unsafe_index_put masked_scatter
    masked_select reflection_pad1d repeat roll scatter scatter_add scatter_reduce select_backward
    select_scatter slice_backward slice_scatter split_with_sizes_copy stack tril_indices triu_indices
    unfold_backward permute_copy expand_copy view_copy t_copy transpose_copy squeeze_copy unsqueeze_copy
    repeat_interleave complex take take_along_dim"""
)
LOOK_UPS = _names("embedding index_select")
LAYER_NORM = _names(
    """native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit _fused_rms_norm
    native_layer_norm_backward native_group_norm_backward native_batch_norm_backward
    _fused_rms_norm_backward"""
)
SOFTMAX = _names("_softmax _safe_softmax _softmax_backward_data")
LOG_SOFTMAX = _names("_log_softmax _log_softmax_backward_data")
GELU = _names("gelu gelu_backward")
# One update of all parameters in one call: FLOPs per element.
FUSED_UPDATES = {"_fused_adamw": 14, "_fused_adam": 14, "_fused_sgd": 4, "_fused_adagrad": 6}

_POINTWISE: dict[OpKind, frozenset[str]] = {
    OpKind.VIEW: VIEWS,
    OpKind.ELEMENTWISE: ELEMENTWISE,
    OpKind.REDUCE: REDUCE,
    OpKind.MOVE: MOVE,
    OpKind.LAYER_NORM: LAYER_NORM,
    OpKind.SOFTMAX: SOFTMAX,
    OpKind.CROSS_ENTROPY: LOG_SOFTMAX,
    OpKind.GELU: GELU,
}
KIND_OF: dict[str, OpKind] = {name: kind for kind, names in _POINTWISE.items() for name in names}


def pointwise(kind: OpKind, n_elements: int, *, backward: bool = False, reads: int | None = None) -> Cost:
    """An operator whose FLOPs go by its elements: those written, for a reduction those read."""
    per = FLOPS_PER.get(kind, (0, 0))[backward]
    counted = n_elements if kind is not OpKind.REDUCE or reads is None else reads
    return Cost(kind=kind, n_elements=n_elements, n_flops=float(per * counted), reads=reads)


def product(m: int, k: int, n: int, batch: int = 1, *, part: str = "", weighs: bool = True) -> Cost:
    """`batch` products [m, k] x [k, n]."""
    return Cost(
        kind=OpKind.MATMUL,
        part=part,
        m=m,
        k=k,
        n=n,
        batch=batch,
        n_elements=batch * m * n,
        n_flops=2.0 * batch * m * k * n,
        reads=None if weighs else batch * (m * k + k * n),
        holds_weight=weighs,
    )


def _table_of_one(call: Call) -> tuple[Cost, ...]:
    kind = KIND_OF[call.name]
    if kind is OpKind.VIEW:
        return (Cost(kind=kind),)
    main = call.outputs[0].numel() if call.outputs else 0
    first = call.inputs[0].numel() if call.inputs else 0
    if kind is OpKind.REDUCE:
        return (pointwise(kind, main, reads=first),)
    if kind is OpKind.LAYER_NORM:  # the mask of a backward pass may leave the first result out
        return (pointwise(kind, first, backward=call.name.endswith("backward")),)
    if kind is OpKind.CROSS_ENTROPY:
        cost = pointwise(kind, main, backward="backward" in call.name)
        return (replace(cost, n=call.outputs[0].shape[-1] if call.outputs[0].dim() else 1),)
    if call.name == "index_put" or call.name.startswith(("scatter", "index_")):
        return (Cost(kind=kind, n_elements=main, reads=sum(x.numel() for x in call.inputs[1:])),)
    return (pointwise(kind, main, backward="backward" in call.name),)


def _products(position: int) -> Callable[[Call], tuple[Cost, ...]]:
    """mm, bmm and their kin: the factors stand at `position` and the one after."""

    def costs(call: Call) -> tuple[Cost, ...]:
        a, b = call.args[position], call.args[position + 1]
        n = b.shape[-1] if b.dim() > 1 else 1
        m = a.shape[-2] if a.dim() > 1 else 1
        return (product(m, a.shape[-1], n, a.shape[0] if a.dim() == 3 else 1),)

    return costs


def _look_up(call: Call) -> tuple[Cost, ...]:
    n = call.n_out
    return (Cost(kind=OpKind.EMBEDDING, n_elements=n, reads=n),)


def _look_up_backward(call: Call) -> tuple[Cost, ...]:
    return (Cost(kind=OpKind.EMBEDDING, n_elements=call.inputs[0].numel(), n_flops=call.inputs[0].numel()),)


def _label_loss(call: Call) -> tuple[Cost, ...]:
    n_rows = call.argument(1, "target").numel()
    return (Cost(kind=OpKind.REDUCE, n_elements=call.outputs[0].numel(), n_flops=n_rows, reads=n_rows),)


def _label_loss_backward(call: Call) -> tuple[Cost, ...]:
    return (Cost(kind=OpKind.MOVE, n_elements=call.n_out, reads=call.argument(2, "target").numel()),)


def attention(batch: int, t: int, s: int, d_head: int, d_value: int) -> tuple[Cost, ...]:
    """softmax(q k^T) v of `batch` heads as two products and a softmax; a mask halves nothing."""
    return (
        product(t, d_head, s, batch, part="scores", weighs=False),
        Cost(kind=OpKind.SOFTMAX, part="softmax", **_softmax_of(batch * t * s, backward=False)),
        product(t, s, d_value, batch, part="mix", weighs=False),
    )


def attention_backward(batch: int, t: int, s: int, d_head: int, d_value: int) -> tuple[Cost, ...]:
    """The four products and the softmax gradient; probabilities count as kept, not as made again."""
    return (
        product(s, t, d_value, batch, part="dv", weighs=False),
        product(t, d_value, s, batch, part="dscores", weighs=False),
        Cost(kind=OpKind.SOFTMAX, part="dsoftmax", **_softmax_of(batch * t * s, backward=True)),
        product(t, s, d_head, batch, part="dq", weighs=False),
        product(s, t, d_head, batch, part="dk", weighs=False),
    )


def _softmax_of(n: int, *, backward: bool) -> dict[str, Any]:
    return {"n_elements": n, "n_flops": float(FLOPS_PER[OpKind.SOFTMAX][backward] * n), "reads": n}


def _fused_attention(call: Call, first: int, costs: Callable[..., tuple[Cost, ...]]) -> tuple[Cost, ...]:
    q, k, v = call.args[first : first + 3]  # each [B, H, positions, width]
    return costs(math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1])


def _attention(call: Call) -> tuple[Cost, ...]:
    return _fused_attention(call, 0, attention)


def _attention_backward(call: Call) -> tuple[Cost, ...]:
    return _fused_attention(call, 1, attention_backward)


def _convolution_size(
    x: Tensor, weight: Tensor, out: Tensor, groups: int, *, is_transposed: bool
) -> tuple[int, int, int, int]:
    """(m, k, n, batch) of a convolution as a product: patches, or positions if transposed, times kernels."""
    kernel, few = math.prod(weight.shape[1:]), x if is_transposed else out
    positions = few.shape[0] * math.prod(few.shape[2:])
    if is_transposed:
        return positions, x.shape[1] // groups, kernel, groups
    return positions, kernel, out.shape[1] // groups, groups


def _convolution(call: Call) -> tuple[Cost, ...]:
    x, weight, is_transposed, groups = (call.args[i] for i in (0, 1, 6, 8))
    m, k, n, batch = _convolution_size(x, weight, call.outputs[0], groups, is_transposed=is_transposed)
    return (product(m, k, n, batch),)


def _convolution_backward(call: Call) -> tuple[Cost, ...]:
    grad, x, weight = call.args[:3]
    m, k, n, groups = _convolution_size(x, weight, grad, call.args[9], is_transposed=call.args[7])
    wanted = call.args[10]
    costs = (product(m, n, k, groups, part="dx"), product(k, m, n, groups, part="dw", weighs=False))
    return tuple(cost for cost, is_wanted in zip(costs, wanted, strict=False) if is_wanted)


def _fused_update(call: Call) -> tuple[Cost, ...]:
    n = sum(x.numel() for x in call.args[0])
    return (Cost(kind=OpKind.OPTIMIZER, n_elements=n, n_flops=float(FUSED_UPDATES[call.name] * n)),)


SPECIAL: dict[str, Callable[[Call], tuple[Cost, ...]]] = {
    "mm": _products(0),
    "bmm": _products(0),
    "mv": _products(0),
    "dot": _products(0),
    "vdot": _products(0),
    "addmm": _products(1),
    "addbmm": _products(1),
    "addmv": _products(1),
    "baddbmm": _products(1),
    "_addmm_activation": _products(1),
    "embedding": _look_up,
    "index_select": _look_up,
    "embedding_dense_backward": _look_up_backward,
    "nll_loss_forward": _label_loss,
    "nll_loss_backward": _label_loss_backward,
    "nll_loss2d_forward": _label_loss,
    "nll_loss2d_backward": _label_loss_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_scaled_dot_product_flash_attention_backward": _attention_backward,
    "_scaled_dot_product_efficient_attention_backward": _attention_backward,
    "_scaled_dot_product_cudnn_attention_backward": _attention_backward,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    **dict.fromkeys(FUSED_UPDATES, _fused_update),
}


def base_name(schema_name: str) -> str:
    """`aten::add_ -> add`, `aten::_foreach_mul_ -> _foreach_mul`; names with `__` at the end stay."""
    name = schema_name.rpartition("::")[2]
    return name if name.endswith("__") else name.removesuffix("_")


def is_mapped(name: str) -> bool:
    """Whether the wafer has a program for this operator."""
    return name in SPECIAL or name in KIND_OF or _list_form(name) is not None


def is_mapped_on(name: str, operands: Iterable[Tensor]) -> bool:
    """Whether it has one for these operands: rows of different lengths can only be looked at."""
    return is_mapped(name) and (name in VIEWS or not any(x.is_nested for x in operands))


def _list_form(name: str) -> OpKind | None:
    """The kind of `_foreach_x`, which is x for every tensor of a list."""
    inner = name.removeprefix("_foreach_")
    return KIND_OF.get(inner) if inner != name else None


def costs_of(call: Call) -> tuple[Cost, ...]:
    """What the mapped operator `call` takes."""
    if call.name in SPECIAL:
        return SPECIAL[call.name](call)
    kind = _list_form(call.name)
    if kind is None:
        return _table_of_one(call)
    n = sum(x.numel() for x in tensors(call.args[0]))
    return (pointwise(kind, n, reads=n if kind is OpKind.REDUCE else None),)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in an argument or a result, in order, those in lists and tuples too."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [x for item in value for x in tensors(item)]
    return []
