"""The device: results unchanged, everything captured, clear errors, PyTorch as before afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import device_lab as lab
from wafergpt import WSE2
from wafergpt.devices.errors import DeviceError, DoesNotFitError, UnmappedOperatorError
from wafergpt.errors import ConfigError
from wafergpt.wafer.report import Report


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    """After every test PyTorch is as it was: no mode, no hook, no active device."""
    yield
    assert WSE2.active() is None
    assert _python_dispatch._get_current_dispatch_mode() is None
    assert not torch_module._global_forward_hooks and not torch_module._global_forward_pre_hooks
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not torch_optimizer._global_optimizer_post_hooks


@pytest.mark.parametrize("name", sorted(lab.CASES))
def test_a_training_step_is_the_same_bits(name: str) -> None:
    """Loss, gradients, weights, buffers and optimiser state of two steps."""
    if name.startswith("Transformers"):
        pytest.importorskip("transformers")
    plain, under, report = lab.twice(name, WSE2())
    assert lab.same_bits(plain, under)
    assert {row.phase for row in report.per_op} == {"forward", "backward", "optimizer"}


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"amsgrad": True}], ids=str)
def test_any_form_of_adamw_is_the_same_bits_and_one_update(options: dict[str, bool]) -> None:
    plain, under, report = lab.twice("ours", WSE2(), **options)
    assert lab.same_bits(plain, under)
    assert not report.unmapped
    updates = sum(row.n_flops for row in report.per_op if row.phase == "optimizer")
    n_values = 2 * lab.SMALL.n_params  # two steps; 9 to 20 operations per value, by the form
    assert 9 * n_values <= updates <= 22 * n_values


def test_the_comparison_of_bits_can_fail() -> None:
    """Planted: rounding to float32's neighbour format is seen, in whatever it first touches."""
    plain, under, _ = lab.twice("ours", WSE2(numerics="bf16"))
    assert not lab.same_bits(plain, under)


def test_inference_mode_and_no_grad_are_the_same_bits() -> None:
    model = lab.gpt()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            plain = model(lab.ids()).logits
            with WSE2() as wafer:
                under = model(lab.ids()).logits
        assert torch.equal(plain, under)
        assert not wafer.report.unmapped
        assert wafer.workload.n_parameters == lab.SMALL.n_params


def test_a_generate_loop_is_the_same_tokens() -> None:
    pytest.importorskip("transformers")
    model = lab.transformers_gpt2().eval()
    prompt = lab.ids(rows=1, length=6) % 95 + 1

    def generate() -> torch.Tensor:
        found: torch.Tensor = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, pad_token_id=0
        )
        return found

    plain = generate()
    with WSE2() as wafer:
        under = generate()
    assert torch.equal(plain, under)
    assert wafer.workload.n_tokens == 6 + 7  # the prompt, then every new token but the last
    assert wafer.workload.n_rows_at_once == 1


def test_an_operator_without_a_program_runs_on_the_host_and_is_listed() -> None:
    x = torch.linspace(0, 1, 12).view(3, 4)
    with WSE2() as wafer:
        values = torch.linalg.svd(x).S
        spectrum = torch.fft.fft(x)
    assert torch.equal(values, torch.linalg.svd(x).S) and torch.equal(spectrum, torch.fft.fft(x))
    report = wafer.report
    assert {(u.name, u.shapes, u.count) for u in report.unmapped} == {
        ("aten::_linalg_svd", "[3, 4]", 1),
        ("aten::_fft_r2c", "[3, 4]", 1),
    }
    assert all(u.host_s > 0 for u in report.unmapped)
    assert report.breakdown_cycles["host"] / report.clock_hz == pytest.approx(
        sum(u.host_s for u in report.unmapped)
    )
    assert any("aten::_linalg_svd [3, 4]" in line for line in report.lines())


def test_the_host_costs_its_time_and_the_transfer() -> None:
    x = torch.randn(64, 64)
    with WSE2() as wafer:
        torch.linalg.svd(x)
    (op,) = (op for op in wafer.workload.ops if op.kind == "host")
    assert op.host_s > 0 and op.in_bytes == 4 * 64 * 64
    assert wafer.report.unmapped[0].host_s == pytest.approx(
        op.host_s + (op.in_bytes + op.out_bytes) / wafer.arch.io_bytes_per_s
    )


def test_strict_raises_before_the_operator_runs() -> None:
    wafer = WSE2(strict=True)
    target = torch.zeros(4, dtype=torch.complex64)
    with (
        pytest.raises(UnmappedOperatorError, match=r"no program for aten::_fft_r2c \[4\].*strict=True"),
        wafer,
    ):
        torch.fft.fft(torch.ones(4), out=target)
    assert not target.any() and not wafer.is_active
    with wafer:
        lab.gpt()(lab.ids())
    assert not wafer.report.unmapped


@pytest.mark.parametrize("name", ["ours", "Transformers", "MLP", "convolutions"])
def test_a_step_of_ordinary_models_needs_no_host(name: str) -> None:
    if name == "Transformers":
        pytest.importorskip("transformers")
    _, _, report = lab.twice(name, WSE2(strict=True))
    assert report.unmapped == ()


def _recurrent() -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.LSTM(8, 16, batch_first=True)
    model(torch.ones(2, 5, 8))[0].sum().backward()
    assert model.weight_hh_l0.grad is not None
    return model.weight_hh_l0.grad


def _twice_differentiated() -> torch.Tensor:
    weight = torch.linspace(-1, 1, 16).view(4, 4).requires_grad_()
    (once,) = torch.autograd.grad((torch.ones(2, 4) @ weight).pow(3).sum(), weight, create_graph=True)
    return torch.autograd.grad(once.square().sum(), weight)[0]


def _sparse() -> torch.Tensor:
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, sparse=True)
    table(torch.arange(3)).sum().backward()
    torch.optim.SparseAdam(table.parameters()).step()
    return table.weight.detach()


ELSE: dict[str, Callable[[], torch.Tensor]] = {
    "recurrent": _recurrent,
    "twice differentiated": _twice_differentiated,
    "sparse gradients": _sparse,
    "torch.func": lambda: torch.func.grad(lambda w: (torch.ones(3, 4) @ w).square().sum())(torch.ones(4, 2)),
    "vmap": lambda: torch.func.vmap(torch.tanh)(torch.linspace(-1, 1, 12).view(3, 4)),
    "einsum": lambda: torch.einsum("bij,bjk->bi", torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
    "data dependent": lambda: torch.topk(torch.arange(9.0), 2).values,
}


@pytest.mark.parametrize("name", ELSE)
def test_any_other_code_is_the_same_bits(name: str) -> None:
    plain = ELSE[name]()
    with WSE2():
        under = ELSE[name]()
    assert torch.equal(plain, under)


def test_order_of_calls() -> None:
    wafer, other = WSE2(), WSE2()
    with pytest.raises(DeviceError, match="no report yet"):
        _ = wafer.report
    with pytest.raises(DeviceError, match=r"stop\(\) called before start\(\)"):
        wafer.stop()
    wafer.start()
    with pytest.raises(DeviceError, match=r"start\(\) called twice"):
        wafer.start()
    with pytest.raises(DeviceError, match="another WSE2 is active"):
        other.start()
    assert WSE2.active() is wafer and wafer.is_active and not other.is_active
    torch.ones(2) + 1
    assert isinstance(wafer.stop(), Report)
    with pytest.raises(DeviceError, match="before start"):
        wafer.stop()


def test_a_region_without_an_operator_is_an_error() -> None:
    wafer = WSE2()
    wafer.start()
    with pytest.raises(DeviceError, match="no PyTorch operator ran"):
        wafer.stop()


def test_an_error_inside_comes_out_and_the_device_can_be_used_again() -> None:
    model = nn.Linear(3, 3)
    wafer = WSE2()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), wafer:
        model(torch.ones(2, 4))
    assert not wafer.is_active and wafer.n_regions == 0
    wafer.start()
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 4))
    model(torch.ones(2, 3))
    report = wafer.stop()
    assert report.host_measured_s is not None and wafer.workload.n_samples == 2


def test_regions_accumulate() -> None:
    model, wafer = lab.gpt(), WSE2()
    reports = []
    for _ in range(3):
        wafer.start()
        model(lab.ids())
        reports.append(wafer.stop())
    assert len({report.cycles for report in reports}) == 1
    assert wafer.n_regions == 3
    assert wafer.report.cycles == pytest.approx(3 * reports[0].cycles)
    assert wafer.workload.n_samples == 3 * lab.ROWS and wafer.workload.n_rows_at_once == lab.ROWS
    assert wafer.workload.n_parameters == lab.SMALL.n_params
    measured = [report.host_measured_s or 0.0 for report in reports]
    assert wafer.report.host_measured_s == pytest.approx(sum(measured))
    wafer.clear()
    with pytest.raises(DeviceError):
        _ = wafer.report


def test_the_report_has_everything_a_planner_asks_for() -> None:
    wafer = WSE2(systems=2)
    _, _, report = lab.twice("ours", wafer)
    assert report.systems == 2 and report.fits and report.energy_j > 0
    assert report.samples_per_s == pytest.approx(2 * lab.ROWS / report.modelled_s)
    assert report.tokens_per_s == pytest.approx(2 * lab.ROWS * 24 / report.modelled_s)
    assert sum(report.breakdown_cycles.values()) == pytest.approx(report.cycles)
    assert report.host_measured_s is not None and report.host_measured_s > 0
    assert report.modelled_speedup == pytest.approx(report.host_measured_s / report.modelled_s)
    assert report.assumptions
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("numerics", "name"), [(None, "word_bytes"), ("cb16", "cb16_exponent_bias"), ("cb16", "simd_cb16")]
)
def test_what_is_assumed_of_the_format_is_labelled(numerics: str | None, name: str) -> None:
    with WSE2(numerics=numerics) as wafer:
        torch.ones(2) + 1
    known = {a.name: a.evidence for a in wafer.report.assumptions}
    assert known[name] == "assumed"
    with WSE2(numerics="fp16") as other:
        torch.ones(2) + 1
    assert {a.name: a.evidence for a in other.report.assumptions}["simd_fp16"] == "published"


def test_a_resident_model_that_cannot_fit_is_refused_before_it_runs() -> None:
    ran = []

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(400, 1000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(True)
            return x @ self.weight

    wafer = WSE2("4x4", execution="resident")
    message = r"Large has 400,000 parameters, 781.2 KiB in cb16; WSE-2 4x4 has room for 691.2 KiB"
    with pytest.raises(DoesNotFitError, match=message), wafer:
        Large()(torch.ones(1, 400))
    assert not ran


def test_what_does_not_fit_only_with_its_training_state_is_told_at_the_end() -> None:
    model = nn.Linear(100, 1000)
    wafer = WSE2("4x4", execution="resident")
    optimizer = torch.optim.AdamW(model.parameters())
    wafer.start()
    model(torch.ones(2, 100)).sum().backward()
    optimizer.step()
    with pytest.raises(DoesNotFitError, match=r"does not fit on WSE-2 4x4 as resident: .* GB of weights"):
        wafer.stop()
    assert not wafer.report.fits


def test_stop_in_another_thread_is_refused_and_other_threads_are_not_seen() -> None:
    wafer, model = WSE2(), nn.Linear(4, 4)
    found: list[BaseException] = []

    def elsewhere() -> None:
        model(torch.ones(50, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        try:
            wafer.stop()
        except DeviceError as error:
            found.append(error)

    wafer.start()
    model(torch.ones(2, 4))
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    report = wafer.stop()
    assert "in the thread that called start()" in str(found[0])
    assert {row.phase for row in report.per_op} == {"forward"}
    assert wafer.workload.n_samples == 2


def test_a_mode_entered_inside_survives_stop() -> None:
    class Mode(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Mode.seen += 1
            return func(*args, **(kwargs or {}))

    wafer = WSE2()
    wafer.start()
    with Mode():
        torch.ones(3) + 1
        report = wafer.stop()
        before = Mode.seen
        torch.ones(3) + 1
        assert Mode.seen > before
    assert any(row.name == "aten::add" for row in report.per_op)


def test_a_start_inside_a_mode_that_has_ended_is_told() -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

    wafer, mode = WSE2(), Mode()
    with mode:
        wafer.start()
    with pytest.raises(DeviceError, match="inside a dispatch mode that ended"):
        wafer.stop()
    assert _python_dispatch._get_current_dispatch_mode() is mode  # PyTorch took ours off in its place
    _python_dispatch._pop_mode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WSE2("WSE-9"), "unknown wafer 'WSE-9'"),
        (lambda: WSE2(numerics="fp8"), "numerics 'fp8' is unknown"),
        (lambda: WSE2(systems=193), "systems = 193"),
        (lambda: WSE2(systems=0), "systems = 0"),
        (lambda: WSE2(systems=1.5), "systems = 1.5; WSE-2 allows a whole number"),
        (lambda: WSE2(execution="wishful"), "execution 'wishful'"),
    ],
)
def test_unknown_settings(make: Callable[[], WSE2], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_compiled_modules_run_eagerly_and_are_captured() -> None:
    """torch.compile steps aside while a dispatch mode is on; nothing runs unseen."""
    model = nn.Linear(4, 4)
    model.compile(backend="eager")
    model(torch.ones(2, 4))
    with WSE2() as wafer:
        model(torch.ones(2, 4))
    assert any(row.name == "aten::addmm" for row in wafer.report.per_op)
