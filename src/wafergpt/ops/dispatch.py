"""One explicit place that picks, for each operation, the fastest equal of `ops.reference`.

The table: bfloat16 matrices on a CPU with our kernels go to `ops.cpu`; everything else goes to torch.

Mixed precision: weights of linear layers and embeddings may be bfloat16 while the residual stream,
LayerNorm parameters and biases stay float32. `layer_norm` takes the residual's dtype and returns the
compute dtype; `linear` returns its input's dtype; adding its result to the residual promotes to float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F

from wafergpt.kernels import build
from wafergpt.ops import cpu, head, reference
from wafergpt.ops.watch import is_torch_only


def _have_kernels(x: Tensor) -> bool:
    """Whether x is where our kernels are; not under torch.compile, which makes its own."""
    return _is_plain_cpu(x) and build.library() is not None


def _is_plain_cpu(x: Tensor) -> bool:
    """Whether x is where operations of our own may run."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_torch_only()


def _kernels_for(x: Tensor) -> bool:
    """Whether our CPU kernels can take the bfloat16 tensor x."""
    return x.dtype == torch.bfloat16 and _have_kernels(x)


def int8_supported() -> bool:
    """Whether `int8=True` can be asked for: kernels built, and a CPU with AVX-512 VNNI."""
    library = build.library()
    return library is not None and bool(library.wg_int8_supported())


def bf16_supported() -> bool:
    """Whether bfloat16 products run in hardware: on a GPU, on a CPU with AVX-512 BF16 or AMX.

    Elsewhere they are emulated; with AVX2 alone at a thirtieth of the speed of float32 (docs/log.md).
    """
    return torch.cuda.is_available() or not build.cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last dimension; statistics in x's dtype; result in `out_dtype` (default: x's)."""
    if out_dtype == torch.bfloat16 and x.dtype == weight.dtype == torch.float32 and _have_kernels(x):
        rows: Tensor = cpu.LayerNorm.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, eps)
        return rows.view(x.shape)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(out_dtype or x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, int8: bool = False) -> Tensor:
    """x [..., I] @ weight [O, I]^T + bias [O], in x's dtype.

    With `int8` (only where `int8_supported`), the product and both of its gradients run in int8.
    """
    if bias is not None and _kernels_for(x) and weight.dtype == torch.bfloat16:
        rows: Tensor = cpu.Linear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, int8)
        return rows.view(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def embedding(ids: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Rows of weight [V, D] at ids [...] in `out_dtype`; the gradient of repeated ids adds up in float32."""
    if out_dtype == torch.float32 and _kernels_for(weight):
        rows: Tensor = cpu.Embedding.apply(ids.reshape(-1), weight)
        return rows.view(*ids.shape, weight.shape[1])
    return F.embedding(ids, weight).to(out_dtype)


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU, exact (erf) or tanh form."""
    if _kernels_for(x):
        out: Tensor = cpu.Gelu.apply(x.contiguous(), tanh)
        return out
    return F.gelu(x, approximate="tanh" if tanh else "none")


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """softmax(scale q k^T) v over keys where `allowed` (bool, broadcastable to [B, H, T, S])."""
    if torch.compiler.is_compiling():  # one fused kernel on CUDA; a row without a key gives zeros there too
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
    return reference.attention(q, k, v, scale, allowed)


def causal_attention_packed(
    qkv: Tensor, n_heads: int, scale: float, lengths: Sequence[int] | None = None
) -> Tensor:
    """Causal self-attention of packed qkv [B, T, 3D] -> [B, T, D] (no padding, no cache).

    `lengths`, adding up to T: each row is so many sequences end to end, and none sees another.
    """
    if lengths is not None and len(lengths) > 1:
        parts = [causal_attention_packed(part, n_heads, scale) for part in qkv.split(list(lengths), dim=1)]
        return torch.cat(parts, dim=1)
    n_rows, n_positions, width = qkv.shape
    d_head = width // 3 // n_heads
    if d_head % 2 == 0 and _kernels_for(qkv) and cpu.attention_supported():
        mixed: Tensor = cpu.CausalAttention.apply(qkv, n_heads, scale)
        return mixed
    q, k, v = qkv.view(n_rows, n_positions, 3, n_heads, d_head).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out.transpose(1, 2).reshape(n_rows, n_positions, width // 3)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    int8: bool = False,
) -> tuple[Tensor, Tensor]:
    """(sum of nats float32, number of counted labels) of softmax(logit_scale * hidden @ weight^T) at labels.

    hidden [N, D], weight [V, D], labels [N] int64. Only a bounded chunk of logits exists at a time.
    """
    n_counted = (labels != ignore_index).sum()
    if _kernels_for(hidden) and weight.dtype == torch.bfloat16:
        loss: Tensor = cpu.LinearCrossEntropy.apply(
            hidden.contiguous(), weight, labels, logit_scale, ignore_index, int8
        )
        return loss, n_counted
    if hidden.dtype == weight.dtype == torch.float32 and _is_plain_cpu(hidden):
        nats: Tensor = head.LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, labels, logit_scale, ignore_index
        )
        return nats, n_counted
    parts = (torch.split(x, cpu.HEAD_CHUNK_ROWS) for x in (hidden, labels))
    chunks = zip(*parts, strict=True)
    losses = [
        torch.utils.checkpoint.checkpoint(  # recompute in backward: the logits of one chunk at a time
            _chunk_loss, rows, weight, targets, logit_scale, ignore_index, use_reentrant=False
        )
        for rows, targets in chunks
    ]
    return torch.stack(losses).sum(), n_counted


def _chunk_loss(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, ignore_index: int) -> Tensor:
    logits = F.linear(hidden, weight)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) * scale
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")


def adamw_step(
    master: Tensor, weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: reference.AdamWStep
) -> None:
    """`reference.adamw_step` on the float32 `master`, then `weight` (float32 or bfloat16) = master.

    `weight` may be `master` itself. `grad` is float32 or bfloat16 of the same shape.
    """
    types_fit = master.dtype == torch.float32 and grad.dtype in (torch.float32, torch.bfloat16)
    in_order = all(x.is_contiguous() for x in (master, exp_avg, exp_avg_sq))  # the kernel goes by addresses
    use_kernel = types_fit and in_order and master.device.type == "cpu" and build.library() is not None
    update = cpu.adamw_step if use_kernel else reference.adamw_step
    update(master, grad.contiguous(), exp_avg, exp_avg_sq, by)
    if weight is not master:
        weight.copy_(master)


def sum_of_squares(grads: list[Tensor]) -> Tensor:
    """Sum over all elements of all tensors of x^2, float64 scalar: the squared global norm."""
    total = torch.zeros((), dtype=torch.float64)
    for grad in grads:
        if grad.device.type == "cpu" and grad.dtype in (torch.float32, torch.bfloat16) and build.library():
            total += cpu.sum_of_squares(grad.contiguous())
        else:
            total += grad.float().square().sum(dtype=torch.float64).cpu()
    return total
