"""Code that is out of the ordinary under the device: same results, right phases, nothing left behind."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _python_dispatch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import device_lab as lab
from wafergpt import WSE2
from wafergpt.devices.errors import UnmappedOperatorError
from wafergpt.devices.numerics import format_of
from wafergpt.wafer.workload import OpKind

X = torch.linspace(-1, 1, 12).view(3, 4)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert WSE2.active() is None
    assert _python_dispatch._get_current_dispatch_mode() is None


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def _checkpointed(reentrant: bool) -> list[Tensor]:
    model, x = perceptron(), X.clone().requires_grad_()
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None] + [x.grad]  # type: ignore[list-item]


def _in_place() -> list[Tensor]:
    a, b = torch.ones(4, 4), torch.zeros(4)
    row = a[1]
    row.add_(3)
    a.mul_(2)[0, 0] = 9
    a.t_()
    torch.add(b, 1, out=b)
    b.index_add_(0, torch.tensor([0, 1]), torch.ones(2)).masked_fill_(b > 1, 0)
    c = torch.ones(3, requires_grad=True)
    (c * 2).relu_().sum().backward()
    assert c.grad is not None
    return [a, row, b, c.grad]


def _complex() -> list[Tensor]:
    z = torch.complex(X, X.flip(0))
    return [torch.view_as_real(x.resolve_conj()) for x in (z @ z.mT, z.conj() @ z.mT, z.conj() * 2j)]


def _integers() -> list[Tensor]:
    a = torch.arange(12).view(3, 4)
    return [a @ a.T, a // 5, a << 1, a[a > 4], (a == 3).nonzero(), a.to(torch.uint8), a.cumsum(0)]


def _empty() -> list[Tensor]:
    e = torch.empty(0, 4)
    q = torch.zeros(0, 2, 3, 4)
    found = [perceptron()(e), e.sum(), torch.zeros(3, 0) @ torch.zeros(0, 2), torch.cat([e, e])]
    return [*found, nn.functional.scaled_dot_product_attention(q, q, q)]


def _one_number() -> list[Tensor]:
    a = torch.tensor(3.0)
    return [a.exp(), torch.tensor(a.item()), torch.log_softmax(a, 0), torch.softmax(a, 0)]


def _nested(**layout: Any) -> list[Tensor]:
    rows = torch.nested.nested_tensor([X[:2], X], **layout)
    return [perceptron().eval()(rows).to_padded_tensor(0.0)]


def _encoder() -> list[Tensor]:
    """PyTorch's fast path: the rows behind a padding mask become a nested tensor."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False, False, False], [False, True, True]])
    with torch.no_grad():
        return [encoder(torch.stack([X, -X]), src_key_padding_mask=mask)]


def _workers() -> list[Tensor]:
    loader = DataLoader(TensorDataset(X), batch_size=2, num_workers=1)
    return [perceptron().eval()(x) for (x,) in loader]


def _modes() -> list[Tensor]:
    model = perceptron().eval()
    found = []
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            found.append(model(X) + 0)
    return found


def _compiled() -> list[Tensor]:
    return [torch.compile(perceptron().eval(), backend="eager")(X)]


def _compiled_whole() -> list[Tensor]:
    """fullgraph=True does not let torch.compile step aside by itself; `torch.cond` asks for it too."""
    found = torch.compile(perceptron().eval(), backend="eager", fullgraph=True)(X)
    return [found, torch.cond(torch.tensor(True), torch.sin, torch.cos, (X,))]


def _lazy() -> list[Tensor]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))(X)]


def _layouts() -> list[Tensor]:
    found = [X.to_sparse() @ X.T, X.to_sparse_csr() @ X.T]
    if torch.backends.mkldnn.is_available():
        found.append((X.to_mkldnn() + X.to_mkldnn()).to_dense())
    return found


def _odd_gradients() -> list[Tensor]:
    """Of sgn: zeros without memory. Of a sparse maximum: its kernel asks who wants a gradient."""
    x, eye = X.clone().requires_grad_(), torch.eye(3).to_sparse_csr().requires_grad_()
    found = [*torch.autograd.grad(torch.sgn(x).sum(), x)]
    return [*found, *torch.autograd.grad(torch.sparse.mm(eye, x, "amax").sum(), x)]


def _scripted() -> list[Tensor]:
    return [torch.jit.trace(perceptron().eval(), X)(X)]  # type: ignore[no-untyped-call]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "checkpointed, reentrant": lambda: _checkpointed(True),
    "checkpointed": lambda: _checkpointed(False),
    "in place": _in_place,
    "complex": _complex,
    "integers": _integers,
    "empty": _empty,
    "one number": _one_number,
    "nested": _nested,
    "nested, jagged": lambda: _nested(layout=torch.jagged),
    "encoder": _encoder,
    "workers": _workers,
    "modes": _modes,
    "compiled": _compiled,
    "compiled whole": _compiled_whole,
    "lazy": _lazy,
    "layouts": _layouts,
    "odd gradients": _odd_gradients,
    "scripted": _scripted,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_bits_and_every_format_runs(name: str) -> None:
    plain = CASES[name]()
    wafer = WSE2(execution="resident")
    with wafer:
        under = CASES[name]()
    assert lab.same_bits(plain, under)
    assert wafer.report.lines()
    if name in ("workers", "compiled", "scripted"):
        return
    with WSE2(numerics="cb16"):
        rounded = CASES[name]()
    assert [x.shape for x in rounded] == [x.shape for x in plain]
    if name in ("integers", "empty"):
        assert lab.same_bits(plain, rounded)


def test_what_pytorch_itself_computes_otherwise_under_any_mode() -> None:
    """Its C++ asks whether a mode is on: the docstring of WSE2 names these. Last bits only."""
    x = X.add(3).requires_grad_()

    def run() -> list[Tensor]:
        return [torch.autograd.grad(x.prod(), x)[0], torch.linalg.svdvals(X), torch.linalg.eigvalsh(X @ X.T)]

    plain = run()
    with WSE2():
        under = run()
    for a, b in zip(plain, under, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_step_that_fails_is_over_and_its_closure_is_no_optimiser() -> None:
    model = perceptron()

    def phases(wafer: WSE2) -> dict[str, set[str]]:
        return {name: {op.phase for op in wafer.workload.ops if op.name == f"aten::{name}"} for name in names}

    names = ("addmm", "rsub")
    for optimizer in (torch.optim.SGD(model.parameters(), 0.1), torch.optim.LBFGS(model.parameters())):

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (1 - model(X)).square().sum()
            loss.backward()
            return loss

        wafer = WSE2()
        with wafer:
            optimizer.step(closure)
        assert phases(wafer) == {"addmm": {"forward"}, "rsub": {"forward"}}
        assert any(op.phase == "optimizer" and op.name == "aten::add_" for op in wafer.workload.ops)

    def fails() -> float:
        raise ValueError("no loss")

    failed = WSE2()
    failed.start()
    with pytest.raises(ValueError, match="no loss"):
        torch.optim.SGD(model.parameters(), 0.1).step(fails)
    _ = 1 - model(X)
    failed.stop()
    assert phases(failed) == {"addmm": {"forward"}, "rsub": {"forward"}}


def test_fake_and_meta_tensors_are_only_asked_for_their_shapes() -> None:
    with WSE2() as wafer:
        with FakeTensorMode():
            assert nn.Linear(4, 2)(torch.ones(3, 4)).shape == (3, 2)
        with torch.device("meta"):
            assert nn.Linear(4, 2)(torch.ones(3, 4)).shape == (3, 2)
    assert wafer.workload.n_flops(OpKind.MATMUL) == 2 * 2 * 3 * 4 * 2


def test_transposed_convolutions_are_the_products_that_they_are() -> None:
    """Every input position times a kernel of 6 x 3 x 3; back: the same twice."""
    model, x = nn.ConvTranspose2d(4, 6, 3, stride=2), torch.ones(2, 4, 5, 5, requires_grad=True)
    with WSE2() as wafer:
        model(x).sum().backward()
    assert wafer.workload.n_flops(OpKind.MATMUL) == 3 * 2 * (2 * 5 * 5) * 4 * (6 * 3 * 3)


def test_an_operator_that_takes_functions_runs_on_the_host_and_is_listed() -> None:
    def run() -> Tensor:
        found: Tensor = torch.cond(torch.tensor(True), torch.sin, torch.cos, (X,))
        return found

    with WSE2() as wafer:
        run()
    (unmapped,) = wafer.report.unmapped
    assert (unmapped.name, unmapped.shapes) == ("higher_order::cond", "[] [3, 4]")
    with pytest.raises(UnmappedOperatorError, match="no program for higher_order::cond"), WSE2(strict=True):
        run()


@pytest.mark.parametrize("name", ["cb16", "bf16"])
def test_sparse_tensors_are_rounded_where_they_have_values(name: str) -> None:
    form, x = format_of(name), torch.tensor([[0.0, 1.001], [0.0, -3.003]])
    wanted = form.round(x)
    for kind in (x.to_sparse(), x.to_sparse_csr(), x.to_sparse_bsr((2, 1))):
        found = form.round(kind)
        assert found.layout == kind.layout and torch.equal(found.to_dense(), wanted)
    assert not torch.equal(wanted, x)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_device_inside_of_a_compiled_module() -> None:
    wafer = WSE2()

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            wafer.start()
            y = self.layer(x)
            wafer.stop()
            return y + 1

    module = Inside()
    plain = module(X)
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(X), plain) and torch.equal(compiled(X), plain)
    assert wafer.n_regions == 3
    assert [op.count for op in wafer.workload.select(OpKind.MATMUL)] == [3]


def test_a_generator_that_is_dropped_ends_its_region() -> None:
    wafer, model = WSE2(), perceptron()

    def rows() -> Iterator[Tensor]:
        with wafer:
            for x in X:
                yield model(x)

    running = rows()
    next(running)
    assert wafer.is_active
    del running
    gc.collect()
    assert not wafer.is_active
    assert len(list(rows())) == 3 and wafer.n_regions == 1


def test_a_region_may_end_in_another_asyncio_task() -> None:
    wafer, model = WSE2(), perceptron()

    async def begin() -> None:
        wafer.start()
        model(X)

    async def end() -> None:
        wafer.stop()

    async def both() -> None:
        await asyncio.create_task(begin())
        await asyncio.create_task(end())

    asyncio.run(both())
    assert wafer.n_regions == 1


def test_a_device_whose_thread_has_ended_can_be_stopped_elsewhere() -> None:
    wafer = WSE2()

    def begin() -> None:
        wafer.start()
        perceptron()(X)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    perceptron()(X)  # not seen
    wafer.stop()
    assert wafer.workload.n_samples == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_region_of_its_own() -> None:
    wafer, model = WSE2(), perceptron()
    with wafer:
        model(X)
        child = os.fork()
        if child == 0:
            model(X)
            wafer.stop()
            os._exit(0 if wafer.workload.n_samples == 6 and WSE2.active() is None else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert wafer.workload.n_samples == 3


def test_a_copy_does_not_have_the_open_region() -> None:
    """As when a module that holds a device is copied."""
    wafer = WSE2("16x16", numerics="bf16")
    with wafer:
        perceptron()(X)
        twin = copy.deepcopy(wafer)
        assert not twin.is_active and twin.n_regions == 0
    again = copy.deepcopy(wafer)
    assert again.report == wafer.report and again.arch == wafer.arch
