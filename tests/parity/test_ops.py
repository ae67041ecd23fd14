"""Every operation of the bfloat16 training path, compiled and by torch alone, against ops.reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ops_lab import (
    COMPILED,
    TINY,
    TORCH,
    E,
    U,
    excess,
    labels_for,
    leaf,
    need_attention,
    need_kernels,
    normal,
    product_bound,
)
from wafergpt.kernels import build
from wafergpt.ops import cpu, dispatch, reference

# Rows and widths: one, odd, below and above the vector (16), the panel (64), and not multiples of them.
RAGGED = [(1, 1), (1, 64), (3, 7), (5, 33), (64, 48), (67, 100), (130, 385)]


@pytest.fixture(params=[COMPILED, TORCH])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the dispatch: our kernels, and what WAFERGPT_KERNELS=off leaves."""
    if request.param == COMPILED:
        need_kernels()
    else:
        monkeypatch.setattr(build, "library", lambda: None)
    return str(request.param)


def layer_norm_bounds(x: Tensor, weight: Tensor, dy: Tensor, eps: float) -> tuple[Tensor, ...]:
    """For y, dx, dweight, dbias of x [N, D]: mean and variance are sums of D terms as large as max|x|."""
    n, d = x.shape
    x, weight, dy = x.double(), weight.double(), dy.double()
    rstd = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    # Error of (x - mean) * rstd: the mean's, and the variance's share of the normalised value.
    normed = ((x - x.mean(-1, keepdim=True)) * rstd).abs()
    off = 2 * (d + 8) * E * (rstd * x.abs().amax(-1, keepdim=True) + 1) * (1 + normed)
    y = off * weight.abs() + U * (normed * weight.abs() + 1) + E
    g = (dy * weight).abs()
    mean_g, mean_gx = g.mean(-1, keepdim=True), (g * (normed + off)).mean(-1, keepdim=True)
    worst = off.amax(-1, keepdim=True)
    relative = 2 * (d + 8) * E + 2 * worst
    dx = rstd * (relative * (g + mean_g + normed * mean_gx) + off * mean_gx)
    dweight = (dy.abs() * (off + (n + 8) * E * normed)).sum(0)
    dbias = (n + 8) * E * dy.abs().sum(0)
    return y, dx, dweight, dbias


def run_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Through the dispatch: y bfloat16, dx, dweight, dbias float32."""
    inputs = [leaf(t, torch.float32) for t in (x, weight, bias)]
    y = dispatch.layer_norm(*inputs, 1e-5, torch.bfloat16)
    y.backward(dy)
    return y.detach(), *(t.grad for t in inputs)


def expect_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, eps: float = 1e-5
) -> tuple[Tensor, ...]:
    """The definition in float64."""
    inputs = [leaf(t, torch.float64) for t in (x, weight, bias)]
    y = reference.layer_norm(*inputs, eps)
    y.backward(dy.double())
    return y.detach(), *(t.grad for t in inputs)


@pytest.mark.parametrize(("n", "d"), RAGGED)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e15, 0.0), (1e-30, 0.0), (1.0, 30.0)])
def test_layer_norm(path: str, n: int, d: int, scale: float, offset: float) -> None:
    x = normal(n, d, seed=1, scale=scale, dtype=torch.float32) + offset
    weight = normal(d, seed=2, dtype=torch.float32) + 1
    bias, dy = normal(d, seed=3, scale=0.1, dtype=torch.float32), normal(n, d, seed=4)
    got, want = run_layer_norm(x, weight, bias, dy), expect_layer_norm(x, weight, bias, dy)
    bounds = layer_norm_bounds(x, weight, dy, 1e-5)
    for name, *three in zip(("y", "dx", "dweight", "dbias"), got, want, bounds, strict=True):
        assert excess(*three) <= 1, name


def test_layer_norm_planted_bugs() -> None:
    need_kernels()
    x, weight = normal(5, 33, seed=1, dtype=torch.float32), normal(33, seed=2, dtype=torch.float32) + 1
    bias, dy = normal(33, seed=3, dtype=torch.float32), normal(5, 33, seed=4)
    got, bounds = run_layer_norm(x, weight, bias, dy), layer_norm_bounds(x, weight, dy, 1e-5)
    for wrong in (
        expect_layer_norm(x, weight, bias, dy, eps=1e-2),
        expect_layer_norm(x, weight, bias * 0, dy),
        expect_layer_norm(x * 33 / 32, weight * 32 / 33, bias, dy),  # Bessel's correction, nearly
        expect_layer_norm(x, weight, bias, dy.roll(1, 0)),
    ):
        assert max(excess(*three) for three in zip(got, wrong, bounds, strict=True)) > 1


def gelu_bounds(x: Tensor, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """The erf polynomial is off by 1.5e-7 (Abramowitz & Stegun 7.1.26), halved by 0.5 x (1 + erf): < 2^-23;
    exp by 2e-7; tanh loses two float32 ulp near 1, which its slope multiplies by up to 0.11 x^3."""
    y, dx = gelu_by(reference.gelu, x.double(), dy, tanh)
    x, dy = x.double().abs(), dy.double().abs()
    bounded = x.clamp(max=10)  # beyond, both forms are 0 or x
    return U * y.abs() + 2.0**-22 * x, U * dx.abs() + 2.0**-22 * dy * (4 + bounded**3)


def gelu_by(function, x: Tensor, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """(y, dx) of x in its own dtype."""
    x = leaf(x)
    y = function(x, tanh)
    y.backward(dy.to(x.dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
@pytest.mark.parametrize("count", [1, 15, 1000, 20_001])
def test_gelu(path: str, tanh: bool, count: int) -> None:
    x, dy = normal(count, seed=5, scale=3), normal(count, seed=6)
    got, want = gelu_by(dispatch.gelu, x, dy, tanh), gelu_by(reference.gelu, x.double(), dy, tanh)
    for three in zip(got, want, gelu_bounds(x, dy, tanh), strict=True):
        assert excess(*three) <= 1


@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
def test_gelu_of_every_finite_bfloat16(path: str, tanh: bool) -> None:
    """Up to 1e12 both ways: there the definition itself, x^3 and its slope, is finite in float32."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[x.abs() < (1e12 if tanh or path == TORCH else 3.4e38)]
    dy = torch.ones_like(x)
    got, want = gelu_by(dispatch.gelu, x, dy, tanh), gelu_by(reference.gelu, x.double(), dy, tanh)
    for three in zip(got, want, gelu_bounds(x, dy, tanh), strict=True):
        assert excess(*three) <= 1


def test_gelu_planted_bugs() -> None:
    need_kernels()
    x, dy = normal(1000, seed=5, scale=2), normal(1000, seed=6)
    got, bounds = gelu_by(dispatch.gelu, x, dy, False), gelu_bounds(x, dy, False)
    other_form = gelu_by(reference.gelu, x.double(), dy, True)
    shifted = gelu_by(reference.gelu, x.double() * 1.01, dy, False)
    for wrong in (other_form, shifted):
        assert all(excess(*three) > 1 for three in zip(got, wrong, bounds, strict=True))


@pytest.mark.parametrize(("n", "d_out"), RAGGED)
@pytest.mark.parametrize("d_in", [1, 50, 129])
def test_linear(path: str, n: int, d_in: int, d_out: int) -> None:
    x, weight = normal(n, d_in, seed=1), normal(d_out, d_in, seed=2)
    bias, dy = normal(d_out, seed=3, dtype=torch.float32), normal(n, d_out, seed=4)
    inputs = [leaf(t) for t in (x, weight, bias)]
    y = dispatch.linear(*inputs)
    y.backward(dy)
    want = [leaf(t, torch.float64) for t in (x, weight, bias)]
    expected = reference.linear(*want)
    expected.backward(dy.double())
    # The bias is rounded to bfloat16, and may be added before or after the sum is.
    bound = product_bound(x, weight.T, 0, 0) + 2 * U * (bias.abs() + expected.detach().abs())
    assert excess(y.detach(), expected.detach(), bound) <= 1
    assert excess(inputs[0].grad, want[0].grad, product_bound(dy, weight, 0, 0)) <= 1
    assert excess(inputs[1].grad, want[1].grad, product_bound(dy.T, x, 0, 0)) <= 1
    # torch alone sums the bias gradient in float32 and rounds it with the rest of the graph to bfloat16.
    rounding = 0 if path == COMPILED else U
    dbias_bound = (n + 8) * E * dy.double().abs().sum(0) + rounding * want[2].grad.abs()
    assert excess(inputs[2].grad, want[2].grad, dbias_bound) <= 1


def test_embedding_sums_repeated_ids_in_float32(path: str) -> None:
    """Then one rounding to the weight's bfloat16. torch's own gradient sums in bfloat16: n roundings."""
    n, vocab_size, d = 300, 7, 33
    ids = torch.randint(0, vocab_size - 1, (n,), generator=torch.Generator().manual_seed(0))
    weight, dy = leaf(normal(vocab_size, d, seed=1)), normal(n, d, seed=2, dtype=torch.float32)
    out = dispatch.embedding(ids, weight, torch.float32)
    out.backward(dy)
    assert torch.equal(out.detach(), weight.detach().float()[ids])
    want = torch.zeros(vocab_size, d, dtype=torch.float64).index_add_(0, ids, dy.double())
    magnitude = torch.zeros(vocab_size, d, dtype=torch.float64).index_add_(0, ids, dy.double().abs())
    bound = U * want.abs() + (n + 8) * E * magnitude if path == COMPILED else 2 * n * U * magnitude
    assert excess(weight.grad, want, bound) <= 1
    assert not weight.grad[-1].any()


def head_by(function, hidden: Tensor, weight: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, ...]:
    """(loss, dhidden, dweight) of the sum; the count is checked against the labels."""
    hidden, weight = leaf(hidden), leaf(weight)
    loss, n_counted = function(hidden, weight, labels, scale)
    assert int(n_counted) == int((labels != -100).sum())
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


def head_bounds(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, n_chunks: int
) -> tuple[Tensor, ...]:
    """Logits err by dz (bfloat16, then float32 work on V terms). A row's loss moves by at most 2 max dz, its
    probabilities by a factor exp(2 max dz), and the gradient is rounded to bfloat16 before it is used."""
    n, vocab_size = hidden.shape[0], weight.shape[0]
    hidden, weight = hidden.double(), weight.double()
    dz = scale * product_bound(hidden, weight.T, 0, 0).amax(-1, keepdim=True)
    dz = dz + (vocab_size + 16) * E + 4 * E * scale * (hidden @ weight.T).abs().amax(-1, keepdim=True)
    counted = (labels >= 0)[:, None].double()
    probability = (scale * hidden @ weight.T).softmax(-1)
    own = torch.nn.functional.one_hot(labels.clamp(min=0), vocab_size).double()
    wrong = counted * scale * (probability * torch.expm1(2 * dz) * (1 + U) + U * (probability + own))
    grad = counted * scale * (probability - own)
    loss = (counted * 2 * dz).sum() + (n + 8) * E * (counted * 20).sum()
    dhidden = product_bound(grad, weight, wrong, 0)
    # Every chunk's part is rounded to bfloat16; the parts are summed in float32 or, by torch, in bfloat16.
    dweight = product_bound(grad.T, hidden, wrong.T, 0) + n_chunks * 2 * U * (grad.T.abs() @ hidden.abs())
    return loss, dhidden, dweight


HEADS = [(1, 1, 1), (1, 8, 5), (7, 33, 2), (20, 64, 63), (33, 48, 257), (70, 32, 1000), (37, 64, 5000)]


@pytest.mark.parametrize(("n", "d", "vocab_size"), HEADS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_linear_cross_entropy(path: str, n: int, d: int, vocab_size: int, scale: float) -> None:
    hidden, weight = normal(n, d, seed=1), normal(vocab_size, d, seed=2, scale=2 / math.sqrt(d))
    labels = labels_for(n, vocab_size, seed=3, ignored=n // 4)
    got = head_by(dispatch.linear_cross_entropy, hidden, weight, labels, scale)
    want = head_by(reference.linear_cross_entropy, hidden.double(), weight.double(), labels, scale)
    bounds = head_bounds(hidden, weight, labels, scale, 1)
    for name, *three in zip(("loss", "dhidden", "dweight"), got, want, bounds, strict=True):
        assert excess(*three) <= 1, name
    assert not got[1][labels == -100].any()


@pytest.mark.parametrize("chunk", [1, 7, 10, 29, 30, 64])
def test_the_head_by_chunks(path: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rows: chunks that divide them, leave one row over, hold them exactly, and are larger."""
    monkeypatch.setattr(cpu, "HEAD_CHUNK_ROWS", chunk)
    hidden, weight, labels = (
        normal(30, 32, seed=1),
        normal(100, 32, seed=2, scale=0.4),
        labels_for(30, 100, 3, 5),
    )
    got = head_by(dispatch.linear_cross_entropy, hidden, weight, labels, 1.0)
    want = head_by(reference.linear_cross_entropy, hidden.double(), weight.double(), labels, 1.0)
    bounds = head_bounds(hidden, weight, labels, 1.0, -(-30 // chunk))
    for name, *three in zip(("loss", "dhidden", "dweight"), got, want, bounds, strict=True):
        assert excess(*three) <= 1, name


def test_linear_cross_entropy_planted_bugs() -> None:
    need_kernels()
    hidden, weight, labels = (
        normal(33, 48, seed=1),
        normal(257, 48, seed=2, scale=0.3),
        labels_for(33, 257, 3, 8),
    )
    got = head_by(dispatch.linear_cross_entropy, hidden, weight, labels, 1.0)
    bounds = head_bounds(hidden, weight, labels, 1.0, 1)
    wide = hidden.double(), weight.double()
    neighbours = torch.where(labels < 0, labels, (labels + 1) % 257)
    for wrong in (
        head_by(reference.linear_cross_entropy, *wide, labels, 1.05),
        head_by(reference.linear_cross_entropy, *wide, neighbours, 1.0),
        head_by(
            reference.linear_cross_entropy, wide[0], torch.cat([wide[1][:-1], wide[1][-1:] * 0]), labels, 1.0
        ),
    ):
        assert max(excess(*three) for three in zip(got, wrong, bounds, strict=True)) > 1


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 64, 65, 5000])
@pytest.mark.parametrize("magnitude", [1e-39, 1.0, 80.0, 1e30])
def test_the_cross_entropy_kernel_on_given_logits(vocab_size: int, magnitude: float) -> None:
    """Without the product before it the bound is float32's alone: exp errs by 2e-7 < 4 E and by the rounding
    of its argument; beyond 87.3 below the largest logit it is 1.2e-38 instead of less."""
    need_kernels()
    n = 5
    logits, labels = normal(n, vocab_size, seed=1, scale=magnitude), labels_for(n, vocab_size, 2, 1)
    grad, losses = logits.clone(), torch.empty(n)
    kernel, targets, scale = cpu._kernels().wg_cross_entropy_bf16, labels.where(labels >= 0, -1), 0.5
    kernel(
        *(cpu._pointer(t) for t in (grad, targets, losses)),
        cpu.ctypes.c_int64(n), cpu.ctypes.c_int64(vocab_size), cpu.ctypes.c_float(scale),
    )  # fmt: skip
    wide = leaf(logits, torch.float64)
    z = wide * scale
    expected = torch.stack([reference.cross_entropy(z[i : i + 1], labels[i : i + 1])[0] for i in range(n)])
    expected.sum().backward()
    off = 4 * E * z.detach().abs().amax(-1) + (vocab_size + 16) * E  # of a log-probability
    assert excess(losses, expected.detach(), off + E * expected.detach().abs()) <= 1
    relative = (torch.expm1((2 * off).clamp(max=1)) + U)[:, None]
    probability = z.detach().softmax(-1) * (labels >= 0)[:, None]
    assert excess(grad, wide.grad, relative * scale * probability + U * wide.grad.abs() + TINY) <= 1


ATTENTION = [(1, 1, 1, 32), (2, 1, 2, 64), (3, 1, 3, 80), (63, 1, 1, 64), (64, 1, 1, 128), (65, 2, 2, 32),
             (130, 1, 2, 80), (300, 1, 1, 64), (20, 1, 2, 2), (70, 1, 1, 65)]  # T, B, H, K  # fmt: skip


def attention_bounds(qkv: Tensor, dout: Tensor, n_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """For out and dqkv: float32 scores err by ds, so probabilities by a factor exp(2 ds); they, the gradients
    of the scores and the saved output are rounded to bfloat16. Letters as in ops.reference."""
    n_rows, t, width = qkv.shape
    heads = qkv.double().view(n_rows, t, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = heads
    g = dout.double().view(n_rows, t, n_heads, -1).transpose(1, 2)
    mask = reference.causal_mask(t, t)
    p = reference.attention_weights(q, k, scale, mask)
    ds = (q.shape[-1] + 8) * E * scale * (q.abs() @ k.abs().transpose(-1, -2)).amax(-1, keepdim=True)
    relative = torch.expm1(2 * ds) + (t + 16) * E + U
    out = relative * (p @ v.abs()) + U * (p @ v).abs()
    dp, o = g @ v.transpose(-1, -2), p @ v
    delta = (g * o).sum(-1, keepdim=True)
    off_delta = (g.abs() * out).sum(-1, keepdim=True)
    off_dp = (q.shape[-1] + 8) * E * (g.abs() @ v.abs().transpose(-1, -2) + g.abs().amax() * o.abs().amax())
    grad = p * (dp - delta) * scale
    # exp stays at 1.2e-38 where it is less, and the dot product takes inputs below that for 0.
    floor = 3 * TINY
    # `relative` holds one rounding to bfloat16: here not the probability's but that of dS itself.
    off = p * scale * (off_delta + off_dp) + grad.abs() * relative
    off = off + floor * (1 + scale * (dp.abs() + delta.abs() + off_delta))
    dq = off @ k.abs() + (t + 8) * E * (grad.abs() @ k.abs())
    dk = off.transpose(-1, -2) @ q.abs() + (t + 8) * E * (grad.transpose(-1, -2).abs() @ q.abs())
    dv = (p * relative + floor).transpose(-1, -2) @ g.abs()
    exact = (grad @ k, grad.transpose(-1, -2) @ q, p.transpose(-1, -2) @ g)
    parts = [e + U * (x.abs() + e) for e, x in zip((dq, dk, dv), exact, strict=True)]
    bound = torch.stack(parts).permute(1, 3, 0, 2, 4).reshape(n_rows, t, width)
    return out.transpose(1, 2).reshape(n_rows, t, width // 3), bound


def attention_by(function, qkv: Tensor, dout: Tensor, n_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """(out, dqkv)."""
    qkv = leaf(qkv)
    out = function(qkv, n_heads, scale)
    out.backward(dout.to(out.dtype))
    return out.detach(), qkv.grad


@pytest.mark.parametrize(("t", "n_rows", "n_heads", "k"), ATTENTION)
@pytest.mark.parametrize("magnitude", [1.0, 6.0])
def test_attention(path: str, t: int, n_rows: int, n_heads: int, k: int, magnitude: float) -> None:
    if path == COMPILED:
        need_attention()
    qkv = normal(n_rows, t, 3 * n_heads * k, seed=1, scale=magnitude)
    dout, scale = normal(n_rows, t, n_heads * k, seed=2), 1 / math.sqrt(k)
    got = attention_by(dispatch.causal_attention_packed, qkv, dout, n_heads, scale)
    want = attention_by(reference.causal_attention_packed, qkv.double(), dout, n_heads, scale)
    # torch's own kernel rounds its intermediate values to bfloat16 once more.
    allowed = 1 if path == COMPILED else 2
    for name, *three in zip(
        ("out", "dqkv"), got, want, attention_bounds(qkv, dout, n_heads, scale), strict=True
    ):
        assert excess(*three) <= allowed, name


def test_attention_planted_bugs() -> None:
    need_attention()
    t, n_heads, k = 70, 2, 32
    qkv, dout, scale = normal(1, t, 3 * n_heads * k, seed=1), normal(1, t, n_heads * k, seed=2), k**-0.5
    got = attention_by(dispatch.causal_attention_packed, qkv, dout, n_heads, scale)
    bounds = attention_bounds(qkv, dout, n_heads, scale)

    def mask_off_by_one(qkv: Tensor, n_heads: int, scale: float) -> Tensor:
        q, k, v = qkv.view(1, t, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        allowed = torch.ones(t, t, dtype=torch.bool).tril(1)
        return reference.attention(q, k, v, scale, allowed).transpose(1, 2).reshape(1, t, -1)

    for wrong in (
        attention_by(reference.causal_attention_packed, qkv.double(), dout, n_heads, scale * 1.05),
        attention_by(mask_off_by_one, qkv.double(), dout, n_heads, scale),
        attention_by(reference.causal_attention_packed, qkv.double(), dout, n_heads * 2, scale),
    ):
        assert all(excess(*three) > 1 for three in zip(got, wrong, bounds, strict=True))
