"""bfloat16 training operations on the CPU: torch's GEMMs between our compiled kernels.

Each class is an autograd Function equal to its namesake in `ops.reference`; `ops.dispatch` decides
when to use it. Saved tensors stay in bfloat16; statistics, biases and losses are float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wafergpt.errors import ConfigError
from wafergpt.kernels import build
from wafergpt.ops.reference import AdamWStep
from wafergpt.ops.watch import through_watcher

# Rows of the head that are in memory at once: at V = 50257 the bfloat16 logits then take 206 MB.
HEAD_CHUNK_ROWS = 2048
GRADIENT_ROWS = (
    8192  # outputs whose int8 gradients exist at once: 16 MB at 2,048 tokens, not 100 for the head
)

# Terms an int8 product can sum exactly in int32: 127 * 255 * terms < 2^31 (kernels/cpu/int8_gemm.cpp).
MAX_INT8_TERMS = 66_000


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _kernels() -> Any:
    library = build.library()
    assert library is not None, "ops.dispatch checks that the kernels are there"
    return through_watcher(library)


def attention_supported() -> bool:
    """Whether the CPU has AVX-512 BF16, which the attention kernel needs."""
    return bool(_kernels().wg_attention_supported())


class LayerNorm(torch.autograd.Function):
    """float32 rows in, bfloat16 rows out; x [N, D] contiguous, weight and bias [D] float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, d = x.shape
        y = torch.empty(n, d, dtype=torch.bfloat16)
        mean, rstd = torch.empty(n), torch.empty(n)
        _kernels().wg_layer_norm_bf16(
            _pointer(x), _pointer(weight), _pointer(bias), _pointer(y), _pointer(mean), _pointer(rstd),
            ctypes.c_int64(n), ctypes.c_int64(d), ctypes.c_float(eps),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, d = x.shape
        dy = dy.contiguous()
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        _kernels().wg_layer_norm_backward_bf16(
            _pointer(dy), _pointer(x), _pointer(weight), _pointer(mean), _pointer(rstd),
            _pointer(dx), _pointer(dweight), _pointer(dbias), ctypes.c_int64(n), ctypes.c_int64(d),
        )  # fmt: skip
        return dx, dweight, dbias, None


class Linear(torch.autograd.Function):
    """x [N, I] bfloat16 @ weight [O, I]^T bfloat16 + bias [O] float32 -> [N, O] bfloat16.

    With `int8` all three products run in int8, one scale a row of each factor (as Wortsman et al. 2023,
    arXiv 2304.13013, do for the first two); gradients are rounded stochastically, so their errors have mean
    zero and average out like the noise of the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, int8: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.int8 = int8
        if int8:
            return int8_product(x, Int8Weight.pack(weight), bias)
        return torch.addmm(bias.bfloat16(), x, weight.T)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        dbias = torch.empty(dy.shape[1])
        _kernels().wg_column_sum_bf16(
            _pointer(dy), _pointer(dbias), ctypes.c_int64(dy.shape[0]), ctypes.c_int64(dy.shape[1])
        )
        if ctx.int8:
            dx = int8_product(dy, Int8Weight.pack_transposed(weight), stochastic=True)
            return dx, int8_weight_gradient(dy, x) if ctx.needs_input_grad[1] else None, dbias, None
        dweight = (
            dy.T @ x if ctx.needs_input_grad[1] else None
        )  # a third of the work where weights are frozen
        return dy @ weight, dweight, dbias, None


class Embedding(torch.autograd.Function):
    """Rows of weight [V, D] at ids [N] as float32; the gradient sums repeated ids in float32."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.like = weight
        return weight.index_select(0, ids).float()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        distinct, inverse = ids.unique(return_inverse=True)
        sums = torch.zeros(distinct.shape[0], dy.shape[1]).index_add_(0, inverse, dy)
        return None, torch.zeros_like(ctx.like).index_copy_(0, distinct, sums.to(ctx.like.dtype))


class CausalAttention(torch.autograd.Function):
    """qkv [B, T, 3D] bfloat16 -> [B, T, D]; saves the output and the log-sum-exp, not the probabilities."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_heads: int, scale: float) -> Tensor:
        n_rows, n_positions, width = qkv.shape
        qkv = qkv.contiguous()
        out = torch.empty(n_rows, n_positions, width // 3, dtype=torch.bfloat16)
        lse = torch.empty(n_rows, n_heads, n_positions)
        ctx.sizes = tuple(ctypes.c_int64(i) for i in (n_rows, n_positions, n_heads, width // 3 // n_heads))
        ctx.scale = ctypes.c_float(scale)
        _kernels().wg_attention(_pointer(qkv), _pointer(out), _pointer(lse), *ctx.sizes, ctx.scale)
        ctx.save_for_backward(qkv, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        qkv, out, lse = ctx.saved_tensors
        dout = dout.contiguous()
        dqkv = torch.empty_like(qkv)
        _kernels().wg_attention_backward(
            _pointer(qkv), _pointer(out), _pointer(dout), _pointer(lse), _pointer(dqkv), *ctx.sizes, ctx.scale
        )
        return dqkv, None, None


class Gelu(torch.autograd.Function):
    """Elementwise, bfloat16 in and out, any contiguous shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tanh: bool) -> Tensor:
        y = torch.empty_like(x)
        _kernels().wg_gelu_bf16(_pointer(x), _pointer(y), ctypes.c_int64(x.numel()), ctypes.c_int(tanh))
        ctx.save_for_backward(x)
        ctx.tanh = tanh
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        _kernels().wg_gelu_backward_bf16(
            _pointer(dy), _pointer(x), _pointer(dx), ctypes.c_int64(x.numel()), ctypes.c_int(ctx.tanh)
        )
        return dx, None


@dataclass(frozen=True)
class Int8Weight:
    """A weight as the int8 product wants it: panels of bytes, one scale a column of the product."""

    panels: Tensor  # uint8, see kernels/cpu/int8_gemm.cpp
    scales: Tensor  # [n_out] float32
    depth: int  # padded to a multiple of 4

    @classmethod
    def pack(cls, weight: Tensor) -> Int8Weight:
        """For x @ weight^T: weight [O, I] bfloat16, one scale an output."""
        return cls._pack(weight, weight.shape[0], weight.shape[1], _kernels().wg_int8_pack)

    @classmethod
    def pack_transposed(cls, weight: Tensor) -> Int8Weight:
        """For dy @ weight: one scale an input."""
        return cls._pack(weight, weight.shape[1], weight.shape[0], _kernels().wg_int8_pack_transposed)

    @classmethod
    def _pack(cls, weight: Tensor, n_out: int, depth: int, kernel: Any) -> Int8Weight:
        if depth > MAX_INT8_TERMS:
            raise ConfigError(
                f"an int8 product of {depth:,} terms could overflow; the limit is {MAX_INT8_TERMS:,}:"
                " use a smaller micro_batch_size, or precision bf16 for so large a vocabulary"
            )
        padded = -(-depth // 4) * 4
        panels = torch.empty(-(-n_out // 64) * 64 * padded, dtype=torch.uint8)
        scales = torch.empty(n_out)
        n, k = weight.shape
        weight = weight.contiguous()  # a transposed view, of a file or a caller, has another order
        kernel(
            _pointer(weight), _pointer(panels), _pointer(scales),
            ctypes.c_int64(n), ctypes.c_int64(k), ctypes.c_int64(padded),
        )  # fmt: skip
        return cls(panels, scales, padded)


@dataclass(frozen=True)
class Int8Rows:
    """The left factor of an int8 product: rows of bytes, a scale and a sum for each."""

    values: Tensor  # [M, depth] int8
    scales: Tensor  # [M] float32
    sums: Tensor  # [M] int32

    @classmethod
    def of(cls, x: Tensor, depth: int, stochastic: bool) -> Int8Rows:
        """x [M, K] bfloat16, K <= depth."""
        m, k = x.shape
        rows = cls(torch.empty(m, depth, dtype=torch.int8), torch.empty(m), torch.empty(m, dtype=torch.int32))
        _kernels().wg_int8_quantize_rows(
            _pointer(x), *rows._pointers(),
            ctypes.c_int64(m), ctypes.c_int64(k), ctypes.c_int64(depth), ctypes.c_int(stochastic),
        )  # fmt: skip
        return rows

    @classmethod
    def of_transposed(cls, x: Tensor, depth: int) -> Int8Rows:
        """x [K, M] bfloat16 (rows may lie apart) -> its M columns as rows, rounded stochastically."""
        k, m = x.shape
        rows = cls(torch.empty(m, depth, dtype=torch.int8), torch.empty(m), torch.empty(m, dtype=torch.int32))
        _kernels().wg_int8_quantize_transposed(
            _pointer(x), *rows._pointers(),
            ctypes.c_int64(k), ctypes.c_int64(m), ctypes.c_int64(x.stride(0)), ctypes.c_int64(depth),
        )  # fmt: skip
        return rows

    def times(self, weight: Int8Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """[M, n_out] bfloat16, in `out` (contiguous) if given."""
        m, n_out = self.scales.shape[0], weight.scales.shape[0]
        out = torch.empty(m, n_out, dtype=torch.bfloat16) if out is None else out
        _kernels().wg_int8_gemm(
            *self._pointers(), _pointer(weight.panels), _pointer(weight.scales), _pointer(bias),
            _pointer(out), ctypes.c_int64(m), ctypes.c_int64(n_out), ctypes.c_int64(weight.depth),
        )  # fmt: skip
        return out

    def _pointers(self) -> tuple[ctypes.c_void_p, ...]:
        return _pointer(self.values), _pointer(self.scales), _pointer(self.sums)


def int8_product(
    x: Tensor, weight: Int8Weight, bias: Tensor | None = None, stochastic: bool = False
) -> Tensor:
    """x [M, K] bfloat16 times a packed weight (+ bias float32) -> [M, n_out] bfloat16.

    Rows of x are quantised here, to nearest or stochastically.
    """
    return Int8Rows.of(x, weight.depth, stochastic).times(weight, bias)


def int8_weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy [N, O]^T @ x [N, I] -> [O, I] bfloat16; one scale a column of each."""
    packed = Int8Weight.pack_transposed(x)
    dweight = torch.empty(dy.shape[1], x.shape[1], dtype=torch.bfloat16)
    for first in range(0, dy.shape[1], GRADIENT_ROWS):
        outputs = slice(first, first + GRADIENT_ROWS)
        Int8Rows.of_transposed(dy[:, outputs], packed.depth).times(packed, out=dweight[outputs])
    return dweight


class LinearCrossEntropy(torch.autograd.Function):
    """Head and loss by chunks of rows; gradients are made in the forward pass, so no logits are kept.

    hidden [N, D], weight [V, D] bfloat16, labels [N] int64 -> sum of losses, float32 scalar.
    With `int8` the logits and the hidden gradient are int8 products; the probabilities are rounded
    stochastically, so that small ones count on average, and the label's own term is added exactly.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, ignore: int, int8: bool
    ) -> Tensor:
        n, vocab_size = hidden.shape[0], weight.shape[0]
        labels = torch.where(labels == ignore, -1, labels).long()  # the kernel reads int64
        losses = torch.empty(n)
        dhidden = torch.empty_like(hidden)
        dweight: Tensor | None = None
        # A packed weight is made anew for every chunk: little work beside its product, and two are not kept.
        for start in range(0, n, HEAD_CHUNK_ROWS):
            rows = slice(start, min(start + HEAD_CHUNK_ROWS, n))
            block = hidden[rows]
            logits = int8_product(block, Int8Weight.pack(weight)) if int8 else block @ weight.T  # [chunk, V]
            _kernels().wg_cross_entropy_bf16(
                _pointer(logits), _pointer(labels[rows]), _pointer(losses[rows]),
                ctypes.c_int64(logits.shape[0]), ctypes.c_int64(vocab_size), ctypes.c_float(scale),
            )  # fmt: skip
            if not ctx.needs_input_grad[0]:
                continue
            part: Tensor | None = None
            if ctx.needs_input_grad[1]:  # not where the head is frozen
                part = int8_weight_gradient(logits, block) if int8 else logits.T @ block  # [V, D]
            if int8:
                dhidden[rows] = _int8_hidden_gradient(logits, weight, labels[rows], scale)
            else:
                torch.mm(logits, weight, out=dhidden[rows])
            if part is None:
                continue
            if n <= HEAD_CHUNK_ROWS:
                dweight = part
                break
            if dweight is None:
                dweight = torch.zeros(weight.shape)
            _kernels().wg_accumulate_bf16(_pointer(dweight), _pointer(part), ctypes.c_int64(part.numel()))
        ctx.save_for_backward(dhidden, dweight)
        return losses.sum(dtype=torch.float64).float()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        dhidden, dweight = ctx.saved_tensors
        dweight = None if dweight is None else dweight.mul_(dloss).bfloat16()
        return dhidden.mul_(dloss), dweight, None, None, None, None


def _int8_hidden_gradient(dlogits: Tensor, weight: Tensor, labels: Tensor, scale: float) -> Tensor:
    """dlogits @ weight with the label's term, -scale, taken out of the int8 product; overwrites dlogits."""
    n, vocab_size = dlogits.shape
    _kernels().wg_add_at_labels_bf16(
        _pointer(dlogits),
        _pointer(labels),
        ctypes.c_int64(n),
        ctypes.c_int64(vocab_size),
        ctypes.c_float(scale),
    )
    # 256 rows at a time bound the int8 copy: 13 MB at V = 50257.
    packed = Int8Weight.pack_transposed(weight)
    product = torch.cat([int8_product(block, packed, stochastic=True) for block in torch.split(dlogits, 256)])
    own = weight.index_select(0, labels.clamp(min=0)) * ((labels >= 0)[:, None] * scale)  # [chunk, D]
    return product - own


def adamw_step(master: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: AdamWStep) -> None:
    """`reference.adamw_step` on contiguous float32 tensors; grad float32 or bfloat16."""
    beta1, beta2 = by.betas
    _kernels().wg_adamw(
        _pointer(master), _pointer(grad), ctypes.c_int(grad.dtype == torch.bfloat16),
        _pointer(exp_avg), _pointer(exp_avg_sq), ctypes.c_int64(master.numel()),
        ctypes.c_float(1 - by.lr * by.weight_decay), ctypes.c_float(by.lr / (1 - beta1**by.step)),
        ctypes.c_float(beta1), ctypes.c_float(beta2), ctypes.c_float((1 - beta2**by.step) ** -0.5),
        ctypes.c_float(by.eps), ctypes.c_float(by.grad_scale),
    )  # fmt: skip


def sum_of_squares(x: Tensor) -> float:
    """Sum of x^2 of a contiguous float32 or bfloat16 tensor; float32 within blocks, float64 across."""
    return float(
        _kernels().wg_sum_of_squares(
            _pointer(x), ctypes.c_int(x.dtype == torch.bfloat16), ctypes.c_int64(x.numel())
        )
    )
