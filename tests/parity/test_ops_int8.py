"""The int8 products of training: rounding, exact arithmetic, gradients, stochastic rounding's mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ops_lab import E, U, excess, labels_for, leaf, need_int8, normal, product_bound, step
from wafergpt.errors import ConfigError
from wafergpt.ops import cpu, dispatch, reference

# M, K, N: one, odd, around the row tile (6), the panel (64), the depth unit (4), and beyond one pass of 8192.
RAGGED = [
    (1, 1, 1),
    (1, 4, 64),
    (5, 3, 7),
    (6, 65, 63),
    (7, 64, 65),
    (13, 130, 100),
    (66, 257, 129),
    (3, 8200, 5),
]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    need_int8()


def unpack(weight: cpu.Int8Weight) -> Tensor:
    """The whole numbers [n_out, depth] of a packed weight: panels [panel][depth / 4][64][4] of byte + 128."""
    panels = weight.panels.view(-1, weight.depth // 4, 64, 4).permute(0, 2, 1, 3)
    return (panels.reshape(-1, weight.depth).double() - 128)[: weight.scales.shape[0]]


def decode(rows: cpu.Int8Rows) -> Tensor:
    """The numbers that quantised rows stand for."""
    return rows.values.double() * rows.scales.double()[:, None]


@pytest.mark.parametrize(("m", "k", "n"), RAGGED)
def test_product_is_exact_on_rounded_numbers(m: int, k: int, n: int) -> None:
    """Whole numbers are summed exactly, so only scales, bias and the result are rounded: four float32
    roundings, one bfloat16."""
    x, weight, bias = normal(m, k, seed=1), normal(n, k, seed=2), normal(n, seed=3, dtype=torch.float32)
    packed = cpu.Int8Weight.pack(weight)
    rows = cpu.Int8Rows.of(x, packed.depth, False)
    whole, scales = rows.values.double(), rows.scales.double()[:, None] * packed.scales.double()
    want = (whole @ unpack(packed).T) * scales + bias
    bound = U * want.abs() + 8 * E * ((whole @ unpack(packed).T).abs() * scales + bias.abs())
    assert excess(rows.times(packed, bias), want, bound) <= 1
    excess_missed = (whole @ (unpack(packed) + 1).T) * scales + bias  # planted: 127 taken off, not 128
    assert m * k * n == 1 or excess(rows.times(packed, bias), excess_missed, bound) > 1


@pytest.mark.parametrize(("m", "k", "n"), RAGGED)
def test_nearest_rounding_is_within_half_a_step(m: int, k: int, n: int) -> None:
    """And a bit for the rounding of 127 / largest, which moves what lies between two whole numbers."""
    x, weight = normal(m, k, seed=1), normal(n, k, seed=2)
    padded = -(-k // 4) * 4
    rows = cpu.Int8Rows.of(x, padded, False)
    assert excess(decode(rows)[:, :k], x, step(x) * (0.5 + 127 * 4 * E)) <= 1
    assert excess(decode(rows)[:, :k], x + step(x), step(x) * (0.5 + 127 * 4 * E)) > 1
    assert torch.equal(rows.sums, rows.values.sum(1, dtype=torch.int32))
    for packed, plain in (
        (cpu.Int8Weight.pack(weight), weight),
        (cpu.Int8Weight.pack_transposed(weight), weight.T),
    ):
        decoded = unpack(packed) * packed.scales.double()[:, None]
        assert excess(decoded[:, : plain.shape[1]], plain, step(plain) * (0.5 + 127 * 4 * E)) <= 1


@pytest.mark.parametrize(("m", "k", "n"), RAGGED)
@pytest.mark.parametrize("magnitude", [1.0, 1e20, 1e-25])
def test_linear(m: int, k: int, n: int, magnitude: float) -> None:
    """Half a step (max / 254) of each row where it rounds to nearest, a whole one where stochastically."""
    x, weight = normal(m, k, seed=1, scale=magnitude), normal(n, k, seed=2)
    bias, dy = normal(n, seed=3, dtype=torch.float32), normal(m, n, seed=4)
    inputs = [leaf(t) for t in (x, weight, bias)]
    y = dispatch.linear(*inputs, int8=True)
    y.backward(dy)
    want = [leaf(t, torch.float64) for t in (x, weight, bias)]
    expected = reference.linear(*want)
    expected.backward(dy.double())
    bound = product_bound(x, weight.T, step(x) / 2, step(weight).T / 2) + 2 * U * bias.abs()
    assert excess(y.detach(), expected.detach(), bound * 1.01) <= 1
    dx_bound = product_bound(dy, weight, step(dy), step(weight, 0) / 2)
    assert excess(inputs[0].grad, want[0].grad, dx_bound * 1.01) <= 1
    dw_bound = product_bound(dy.T, x, step(dy, 0).T, step(x, 0) / 2)
    assert excess(inputs[1].grad, want[1].grad, dw_bound * 1.01) <= 1
    assert excess(inputs[2].grad, want[2].grad, (m + 8) * E * dy.double().abs().sum(0)) <= 1
    if n * k > 1000:  # planted: another column's gradient
        assert excess(inputs[1].grad, want[1].grad.roll(1, 1), dw_bound * 1.01) > 1


@pytest.mark.parametrize("chunk", [7, 2048])
@pytest.mark.parametrize(("n", "d", "vocab_size"), [(1, 8, 5), (20, 64, 63), (33, 48, 257), (21, 64, 5000)])
def test_linear_cross_entropy(
    n: int, d: int, vocab_size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in bfloat16, with logits off by half a step of hidden and weight, and gradients by one."""
    monkeypatch.setattr(cpu, "HEAD_CHUNK_ROWS", chunk)
    hidden, weight = normal(n, d, seed=1), normal(vocab_size, d, seed=2, scale=1 / math.sqrt(d))
    labels = labels_for(n, vocab_size, seed=3, ignored=n // 4)
    inputs = [leaf(hidden), leaf(weight)]
    loss, _ = dispatch.linear_cross_entropy(*inputs, labels, 1.0, int8=True)
    loss.backward()
    want = [leaf(hidden, torch.float64), leaf(weight, torch.float64)]
    expected, _ = reference.linear_cross_entropy(*want, labels)
    expected.backward()
    dz = (
        product_bound(hidden, weight.T, step(hidden) / 2, step(weight).T / 2).amax(1, keepdim=True)
        + vocab_size * E
    )
    counted = (labels >= 0)[:, None].double()
    assert excess(loss.detach(), expected.detach(), (counted * 2 * dz).sum()) <= 1
    p = (want[0] @ want[1].T).detach().softmax(1)
    own = torch.nn.functional.one_hot(labels.clamp(min=0), vocab_size).double()
    wrong = counted * (p * torch.expm1(2 * dz) * (1 + U) + U * (p + own))
    grad = counted * (p - own)
    # The label's own term is taken out of the hidden gradient's product; adding it back rounds once more.
    soft, soft_wrong = counted * p, wrong + U * counted * own
    step_soft = (soft + soft_wrong).amax(1, keepdim=True) / 127
    dhidden = product_bound(soft, weight, soft_wrong + step_soft, step(weight, 0) / 2)
    dhidden = dhidden + U * (want[0].grad.abs() + dhidden + counted * (own @ weight.double()).abs())
    assert excess(inputs[0].grad, want[0].grad, dhidden * 1.01) <= 1
    dweight = torch.zeros(vocab_size, d, dtype=torch.float64)
    for start in range(0, n, chunk):
        g, e, h = (t[start : start + chunk] for t in (grad, wrong, hidden))
        a_step = (g.abs() + e).amax(0, keepdim=True) / 127
        dweight += product_bound(g.T, h, (e + a_step).T, step(h, 0) / 2)
    assert excess(inputs[1].grad, want[1].grad, (dweight + U * want[1].grad.abs()) * 1.01) <= 1
    if n > 1:
        assert excess(inputs[0].grad, want[0].grad.roll(1, 0), dhidden * 1.01) > 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (3, 7), (64, 64), (65, 130), (70, 600)])
def test_stochastic_rounding_takes_a_neighbour(m: int, k: int, transposed: bool) -> None:
    x = normal(m, k, seed=1)
    padded = -(-(m if transposed else k) // 4) * 4
    rows = cpu.Int8Rows.of_transposed(x, padded) if transposed else cpu.Int8Rows.of(x, padded, True)
    plain = x.T if transposed else x
    assert excess(decode(rows)[:, : plain.shape[1]], plain, step(plain) * 1.0001) <= 1
    assert not rows.values[:, plain.shape[1] :].any(), "padding is zero"
    assert torch.equal(rows.sums, rows.values.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("transposed", [False, True])
def test_stochastic_rounding_is_unbiased(transposed: bool) -> None:
    """Over many inputs: each error has mean 0 and, between neighbours, at most variance step^2 / 4. The sum
    of n independent ones stays within 5 sigma but for 1 in 1.7 million; the inputs, so the draws, are fixed.
    By column too: the draw must not depend on where a number stands."""
    errors = []
    for seed in range(40):
        x = normal(64, 256, seed=seed)
        rows = cpu.Int8Rows.of_transposed(x, 64) if transposed else cpu.Int8Rows.of(x, 256, True)
        plain = x.T if transposed else x
        errors.append((decode(rows) - plain.double()) / step(plain))
    stacked = torch.stack(errors)  # in steps
    flat = stacked.flatten()
    assert abs(float(flat.sum())) <= 5 * 0.5 * math.sqrt(flat.numel())
    # The largest of 256 such sums: 5.5 sigma.
    assert float(stacked.sum((0, 1)).abs().max()) <= 5.5 * 0.5 * math.sqrt(40 * stacked.shape[1])
    assert float(stacked.sum((0, 2)).abs().max()) <= 5.5 * 0.5 * math.sqrt(40 * stacked.shape[2])
    # A fraction f rounds up with probability f, so the mean square is f (1 - f), 1/6 on average.
    assert abs(float(flat.square().mean()) - 1 / 6) < 0.01
    # Neighbouring draws are unrelated: the correlation of n pairs is within 5 / sqrt(n).
    pairs = torch.corrcoef(torch.stack([stacked[:, :, 1:].flatten(), stacked[:, :, :-1].flatten()]))[0, 1]
    assert abs(float(pairs)) < 5 / math.sqrt(flat.numel())
    # The same comparison refuses a rounding that is off by a hundredth of a step.
    assert abs(float((flat + 0.01).sum())) > 5 * 0.5 * math.sqrt(flat.numel())


def test_small_numbers_beside_a_large_one_count_on_average() -> None:
    """0.1 beside 127: to nearest always 0, stochastically one step in ten times. Binomial, 5 sigma."""
    n = 4000
    x = torch.full((50, n), 0.1, dtype=torch.bfloat16)
    x[:, 0] = torch.arange(50) / 2 + 102  # each row another seed; the step is x[:, 0] / 127
    rows = cpu.Int8Rows.of(x, n, True)
    share = x[:, 1:].double() / step(x)
    sigma = float((share * (1 - share)).sum().sqrt())
    assert abs(float(rows.values[:, 1:].sum(dtype=torch.int64) - share.sum())) <= 5 * sigma
    assert not cpu.Int8Rows.of(x, n, False).values[:, 1:].any()


def test_equal_inputs_give_equal_bits() -> None:
    """The draw is a function of the numbers: no generator, so a resumed run rounds as the first one did."""
    x, weight, dy = normal(70, 130, seed=1), normal(90, 130, seed=2), normal(70, 90, seed=3)
    torch.manual_seed(0)
    first = [cpu.Int8Rows.of(dy, 92, True).values, cpu.int8_weight_gradient(dy, x)]
    torch.manual_seed(1)
    for _ in range(3):
        again = [
            cpu.Int8Rows.of(dy.clone(), 92, True).values,
            cpu.int8_weight_gradient(dy.clone(), x.clone()),
        ]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            assert torch.equal(cpu.int8_weight_gradient(dy, x), first[1])
            packed = cpu.Int8Weight.pack(weight)
            assert torch.equal(cpu.int8_product(x, packed), cpu.int8_product(x, cpu.Int8Weight.pack(weight)))
    finally:
        torch.set_num_threads(threads)


def test_numbers_next_to_nothing_count_as_zero() -> None:
    """Below 2^-121 the scale 127 / largest would overflow; zero is as near as anyone needs."""
    x = torch.tensor([[1e-37, -1e-38, 0.0, 1e-40]], dtype=torch.bfloat16)
    for stochastic in (False, True):
        rows = cpu.Int8Rows.of(x, 4, stochastic)
        assert not rows.values.any() and not rows.sums.any()
    zero = cpu.int8_product(
        torch.zeros(2, 8, dtype=torch.bfloat16), cpu.Int8Weight.pack(normal(3, 8, seed=1))
    )
    assert not zero.any()


def test_a_sum_that_could_overflow_is_refused() -> None:
    longest = torch.zeros(1, cpu.MAX_INT8_TERMS, dtype=torch.bfloat16)
    assert 127 * 255 * cpu.MAX_INT8_TERMS < 2**31
    cpu.Int8Weight.pack(longest)
    with pytest.raises(ConfigError, match="micro_batch_size"):
        cpu.Int8Weight.pack(torch.zeros(1, cpu.MAX_INT8_TERMS + 1, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match="the limit is 66,000"):
        cpu.int8_weight_gradient(*[torch.zeros(cpu.MAX_INT8_TERMS + 1, 2, dtype=torch.bfloat16)] * 2)
