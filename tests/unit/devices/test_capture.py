"""What is captured: FLOPs by the models' formulas, phases, parameters, memory, native kernels."""

from __future__ import annotations

import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import device_lab as lab
import wafergpt.ops.cpu
from wafergpt import GPT, WSE2, GPTConfig
from wafergpt.devices.native_calls import COSTS, QUESTIONS
from wafergpt.devices.operators import KIND_OF, SPECIAL, base_name, is_mapped
from wafergpt.kernels import build
from wafergpt.model.config import FlopsConvention
from wafergpt.ops import dispatch
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.workload import Op, OpKind, TransformerShape, Workload, describe_transformer

N_TOKENS = lab.ROWS * lab.SMALL.max_seq_len
HEAD = 2 * lab.SMALL.vocab_size * lab.SMALL.d_model  # FLOPs of the logits of one token


def captured(name: str, steps: int = 1, **settings: str) -> Workload:
    wafer = WSE2(**settings)
    model_of, loss_of = lab.CASES[name]
    lab.train(model_of(), loss_of, lab.adamw(), wafer, steps)
    return wafer.workload


def described(config: GPTConfig = lab.SMALL) -> Workload:
    shape = TransformerShape(
        name="same", n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads,
        n_kv_heads=config.n_heads, d_ffn=config.ffn_width, vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
    )  # fmt: skip
    return describe_transformer(shape, batch=lab.ROWS, seq_len=config.max_seq_len)


def formula() -> float:
    """Products of one training step: BENCHMARK counts the causal half of attention, a captured one all."""
    config = lab.SMALL
    half = 6 * config.n_layers * config.d_model * config.max_seq_len
    return N_TOKENS * (config.flops_per_token(FlopsConvention.BENCHMARK) + half)


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("ours, logits", 0),
        ("ours", 0),  # the loss makes its gradients in the forward pass
        ("ours, bfloat16", 0),  # likewise, by our kernels
        ("Transformers", 0),
        ("Transformers, autocast", 0),
    ],
)
def test_products_are_those_of_the_formula(name: str, again: int) -> None:
    """Exact, for three implementations and two precisions; and 14 operations per parameter at most fused."""
    if name.startswith("Transformers"):
        pytest.importorskip("transformers")
    if "bfloat16" in name and build.library() is None:
        again = 1
    workload = captured(name, steps=2)
    assert workload.n_flops(OpKind.MATMUL) == 2 * (formula() + again * N_TOKENS * HEAD)
    assert workload.n_tokens == 2 * N_TOKENS and workload.n_samples == 2 * lab.ROWS
    assert workload.n_parameters == lab.SMALL.n_params


def test_the_formula_can_be_missed() -> None:
    """Planted: an attention that is not seen is missed by exactly its products."""
    workload = captured("ours, logits")
    without = [op for op in workload.ops if "attention" not in op.name and op.kind is OpKind.MATMUL]
    missing = formula() - sum(op.n_flops * op.count for op in without)
    assert missing == 12 * N_TOKENS * lab.SMALL.n_layers * lab.SMALL.d_model * lab.SMALL.max_seq_len


@pytest.mark.parametrize("name", ["ours, logits", "Transformers"])
def test_a_captured_step_is_the_described_one(name: str) -> None:
    """Same products by phase, softmax, LayerNorm and loss; GELU only where it is one operator."""
    if name == "Transformers":
        pytest.importorskip("transformers")
    found, expected = captured(name), described()
    for phase in ("forward", "backward"):
        assert found.n_flops(OpKind.MATMUL, phase) == expected.n_flops(OpKind.MATMUL, phase)
    kinds = [OpKind.SOFTMAX, OpKind.LAYER_NORM]
    kinds += [OpKind.GELU, OpKind.CROSS_ENTROPY] if name != "Transformers" else []
    for kind in kinds:
        assert found.n_flops(kind) == expected.n_flops(kind), kind
    assert found.parameters_bytes == expected.parameters_bytes
    matrices = {op.weight_names for op in expected.ops if op.weight_bytes}
    assert len(matrices) == 5  # four of a layer, and the head
    in_products = {n for op in found.select(OpKind.MATMUL) for n in op.weight_names if not n.endswith("bias")}
    assert len(in_products) == 4 * lab.SMALL.n_layers + 1


def test_a_captured_step_costs_what_the_described_one_does() -> None:
    """The same products stream the same weights; the rest differs by a few cycles per small operator."""
    found, expected = price(captured("ours, logits")), price(described())
    streamed = "weight_streaming"
    assert found.breakdown_cycles[streamed] == pytest.approx(expected.breakdown_cycles[streamed], rel=1e-3)
    assert found.cycles == pytest.approx(expected.cycles, rel=0.01)


def test_cerebras_count_of_a_step() -> None:
    """Products and softmax, with 4 V D a token for the embedding that is a look-up here: the steps table."""
    workload = captured("ours, logits")
    found = workload.n_flops(OpKind.MATMUL) + workload.n_flops(OpKind.SOFTMAX)
    look_up = N_TOKENS * 4 * lab.SMALL.vocab_size * lab.SMALL.d_model
    assert found + look_up == N_TOKENS * lab.SMALL.flops_per_token(FlopsConvention.CEREBRAS_TABLE)


def test_phases() -> None:
    """Backward is what autograd runs and what is done to gradients; clipping is not forward."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wafer = WSE2()
    wafer.start()
    loss = model(torch.ones(3, 4)).square().sum()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    with torch.no_grad():
        model.weight.mul_(0.5)
    wafer.stop()
    phases = {(op.name, op.phase) for op in wafer.workload.ops}
    assert {("aten::addmm", "forward"), ("aten::mm", "backward")} <= phases
    assert {phase for name, phase in phases if name == "aten::_foreach_norm"} == {"backward"}
    assert {op.phase for op in wafer.workload.ops if op.name == "aten::mul_"} == {"optimizer"}
    kinds = {op.kind for op in wafer.workload.select(phase="optimizer")}
    assert kinds <= {OpKind.OPTIMIZER, OpKind.VIEW}


def test_first_values_are_no_update_and_every_module_is_named() -> None:
    with WSE2(execution="resident") as wafer:
        image = nn.Conv2d(3, 4, 3)(torch.ones(2, 3, 8, 8))
        saved = {"weight": torch.ones(2, 4), "bias": torch.ones(2)}
        linear = nn.Linear(4, 2)
        linear.load_state_dict(saved)
        linear(image.mean((2, 3)))
    assert wafer.workload.description == "Conv2d, Linear, captured: initialisation, forward"
    written = {op.phase for op in wafer.workload.ops if op.name in ("aten::uniform_", "aten::copy_")}
    assert written == {"initialisation"}
    weights = wafer.workload.parameters_bytes / 1e9
    assert f"{weights:.3g} GB of weights" in wafer.report.reason  # and not eight times as much to train


def test_a_module_at_the_address_of_one_that_is_gone_is_another() -> None:
    with WSE2() as wafer:
        for _ in range(20):  # some of them get the address of one before
            nn.Linear(2, 2)(torch.ones(3, 2))
            nn.LayerNorm(2)(torch.ones(3, 2))
    assert wafer.workload.description.startswith("Linear, LayerNorm, captured")
    assert wafer.workload.n_samples == 3  # of the module that saw most, not of all with its address


def test_an_update_by_hand_is_an_update() -> None:
    model = nn.Linear(4, 2)
    model(torch.ones(3, 4)).sum().backward()
    with WSE2() as wafer, torch.no_grad():  # the backward pass was before the region
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)
            parameter.mul_(0.99)
            parameter.data.add_(parameter.grad, alpha=-0.1)
    assert wafer.workload.description == "tensors, captured: optimizer"


def test_of_many_modules_the_first_are_named() -> None:
    with WSE2() as wafer:
        for model in (nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)):
            model(torch.ones(3, 4))
    assert wafer.workload.description.startswith("Linear, LayerNorm, PReLU and 1 more, captured: init")


def test_checkpointed_layers_count_their_recomputation_as_backward() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    x = torch.ones(2, 6, requires_grad=True)
    with WSE2() as wafer:
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    runs = [(op.phase, op.count) for op in wafer.workload.ops if op.kind is OpKind.GELU]
    assert sorted(runs) == [("backward", 1), ("backward", 1), ("forward", 1)]  # again, and its gradient


def test_parameters_are_known_by_name_through_views_and_casts() -> None:
    model = nn.Linear(4, 2)
    with WSE2() as wafer, torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(3, 4))
    (product,) = wafer.workload.select(OpKind.MATMUL)
    assert product.weight_names == ("bias", "weight")
    assert product.weight_bytes == 2 * (2 + 8)
    assert wafer.workload.n_parameters == 10


def test_a_weight_outside_of_modules_is_one_when_it_asks_for_a_gradient() -> None:
    weight = torch.ones(4, 2, requires_grad=True)
    with WSE2() as wafer:
        _ = torch.ones(3, 4) @ weight
    (product,) = wafer.workload.select(OpKind.MATMUL)
    assert (product.m, product.k, product.n, product.batch) == (3, 4, 2, 1)
    assert product.weight_bytes == 16 and wafer.workload.n_parameters == 8


def test_fp32_takes_twice_the_bytes_of_the_16_bit_formats() -> None:
    x, model = torch.ones(3, 4), nn.Linear(4, 2)
    bytes_of = {}
    for numerics in ("cb16", "fp32"):
        with WSE2(numerics=numerics) as wafer:
            model(x)
        bytes_of[numerics] = (wafer.workload.parameters_bytes, wafer.workload.activation_bytes_peak)
    assert bytes_of["cb16"] == (2 * 10, 2 * 6)
    assert bytes_of["fp32"] == (4 * 10, 4 * 6)


def test_the_peak_of_activations_follows_what_lives() -> None:
    x = torch.ones(100)
    with WSE2() as wafer:
        for _ in range(5):
            y = x + 1  # while the next is made, the one before is still there
    del y
    assert wafer.workload.activation_bytes_peak == 2 * 2 * 100
    kept = []
    with WSE2() as wafer:
        for _ in range(5):
            kept.append(x + 1)
    assert wafer.workload.activation_bytes_peak == 5 * 2 * 100


def test_autograd_keeps_activations_for_the_backward_pass() -> None:
    model = nn.Sequential(*(nn.Linear(50, 50) for _ in range(4)))
    peaks = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad), WSE2() as wafer:
            model(torch.ones(10, 50))
        peaks.append(wafer.workload.activation_bytes_peak)
    row = 2 * 10 * 50
    assert peaks[0] <= 3 * row and peaks[1] >= 4 * row


@pytest.mark.skipif(build.library() is None, reason="no native training kernels")
def test_native_kernels_are_captured_with_their_weights() -> None:
    workload = captured("ours, bfloat16")
    found = {op.name for op in workload.ops if op.name.startswith("wafergpt::")}
    assert {"wafergpt::layer_norm_bf16", "wafergpt::gelu_backward_bf16"} <= found
    norms = [op for op in workload.ops if op.name == "wafergpt::layer_norm_bf16"]
    assert {name for op in norms for name in op.weight_names} >= {"h.0.ln_1.weight", "ln_f.bias"}
    assert workload.n_flops(OpKind.LAYER_NORM) == described().n_flops(OpKind.LAYER_NORM)
    assert workload.n_flops(OpKind.GELU) == described().n_flops(OpKind.GELU)


@pytest.mark.skipif(not dispatch.int8_supported(), reason="no int8 kernels")
def test_int8_products_are_captured() -> None:
    """Their depth is padded to four, which none of these is not."""
    model = GPT(lab.SMALL).to_compute_dtype(torch.bfloat16).use_int8()
    wafer = WSE2()
    lab.train(model, lab.our_loss, lab.adamw(), wafer, 1)
    assert wafer.workload.n_flops(OpKind.MATMUL) == formula()
    forward = [op for op in wafer.workload.ops if op.name == "wafergpt::int8_gemm" and op.phase == "forward"]
    names = {name for op in forward for name in op.weight_names}
    matrices = {n for n, shape in lab.SMALL.parameter_shapes().items() if len(shape) == 2}
    assert names == matrices - {"wpe.weight"}


def test_every_native_kernel_has_a_cost() -> None:
    """A kernel added to `ops.cpu` without an entry would raise under the device; here it fails first."""
    folder = Path(wafergpt.ops.cpu.__file__).parent
    called = {name for path in folder.glob("*.py") for name in re.findall(r"\.(wg_\w+)", path.read_text())}
    assert called == COSTS.keys() | QUESTIONS


def test_every_table_entry_is_an_operator_of_this_torch_or_of_another_backend() -> None:
    known = {base_name(schema.name) for schema in torch._C._jit_get_all_schemas()}
    missing = {name for name in (*KIND_OF, *SPECIAL) if name not in known}
    assert missing <= {"__iand__", "__ior__", "__ixor__"}, sorted(missing)


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("aten::add_", True),
        ("aten::_foreach_mul_", True),
        ("aten::_foreach_svd", False),
        ("aten::fft_fft", False),
    ],
)
def test_mapped(name: str, mapped: bool) -> None:
    assert is_mapped(base_name(name)) is mapped


def test_attention_variants_are_the_same_work() -> None:
    """The fused kernel, the written-out one and one with a mask: two products and a softmax."""
    q, k, v = (torch.randn(2, 3, 8, 4) for _ in range(3))
    mask = torch.ones(8, 8, dtype=torch.bool).tril()

    def work(**options: object) -> dict[OpKind, float]:
        with WSE2() as wafer:
            nn.functional.scaled_dot_product_attention(q, k, v, **options)
        flops = wafer.workload.flops_by_kind()
        return {kind: flops[kind] for kind in (OpKind.MATMUL, OpKind.SOFTMAX)}

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = work()
    assert plain == work() == work(is_causal=True) == work(attn_mask=mask)
    assert plain[OpKind.MATMUL] == 2 * 2 * (2 * 3) * 8 * 8 * 4


def test_equal_operators_are_merged() -> None:
    x = torch.ones(3)
    with WSE2() as wafer:
        for _ in range(4):
            x.add(1)
    (op,) = (op for op in wafer.workload.ops if op.name == "aten::add")
    assert isinstance(op, Op) and op.count == 4 and op.n_flops == 3 and op.host_s > 0


def test_what_the_code_lets_go_of_is_freed() -> None:
    """Inputs that ask for a gradient and models that are dropped, in one long region; counted once each."""
    model, wafer = nn.Linear(64, 64), WSE2()
    seen: list[weakref.ref[object]] = []
    with wafer:
        for _ in range(4):
            x = torch.ones(8, 64, requires_grad=True)
            other = nn.Linear(64, 32)
            seen += [weakref.ref(x.untyped_storage()), weakref.ref(other.weight.untyped_storage())]
            (model(x).sum() + other(x).sum()).backward()
        del x, other
        assert not any(reference() for reference in seen)
    one = 64 * 64 + 64
    assert wafer.workload.n_parameters <= one + 2 * (8 * 64 + 64 * 32 + 32)
    products = [op for op in wafer.workload.select(OpKind.MATMUL) if op.phase == "forward"]
    assert sum(op.count for op in products) == 8 and len(products) <= 4  # equal ones are merged
