"""`WSE2`: a wafer that any PyTorch code runs under. The host computes; the wafer's time is modelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from time import perf_counter_ns
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from wafergpt.config import require
from wafergpt.devices.capture import Capture
from wafergpt.devices.errors import DeviceError, DoesNotFitError
from wafergpt.devices.numerics import Format, format_of
from wafergpt.devices.records import Records
from wafergpt.units import format_bytes
from wafergpt.wafer.analytic.price import EXECUTIONS, SRAM_SHARE, price
from wafergpt.wafer.arch import Arch, Evidence, Quantity, get_arch
from wafergpt.wafer.report import Assumption, Report
from wafergpt.wafer.workload import WORD_BYTES, Workload

EXACT = "exact"
WAFER_DTYPE = (
    "cb16"  # what the modelled wafer computes in while the host's results stay exact: Model Zoo configs
)

_guard = threading.Lock()
_active: WSE2 | None = None


class WSE2:
    """A modelled wafer around any PyTorch code: `start()`, the code, `stop()`; or `with WSE2() as wafer:`.

    Between the two every operator of the thread is captured and costed: modules of any kind, a forward pass
    or a whole training step. Results are the same bits as without the device, but for the few that PyTorch
    itself computes otherwise while anything watches its operators (the gradient of `prod`, singular values
    and eigenvalues without vectors): they may differ in their last bits. `stop()` returns the `Report`
    of the region; `report` is that of all regions of this device together, `clear()` forgets them.

    - arch: "WSE-2", "WSE-3", a mesh such as "16x16", or an `Arch`; "WSE-2@sdk": at the SDK's 0.85 GHz.
    - numerics: "exact" (default, None), or "cb16", "fp16", "bf16", "fp32": then every operator's inputs and
      results are rounded to that format, the optimiser's excepted.
    - systems: wafers that share the batch. release: the software's, see `price`.
    - execution: "streaming" (weights flow through) or "resident" (they stay).
    - strict: an operator that the wafer has no program for raises before it runs; otherwise it runs on the
      host, is costed as such and listed in the report.

    Raises ConfigError for an unknown setting; DeviceError for a start or stop out of order, for a second
    device at the same time, for a stop in another thread while the first one lives, and for a region without
    an operator; DoesNotFitError for a model too large to be resident; UnmappedOperatorError under strict.
    Compiled modules run eagerly between start and stop, other threads' too, whose code is not seen otherwise.
    """

    def __init__(
        self,
        arch: str | Arch = "WSE-2",
        *,
        numerics: str | None = None,
        systems: int = 1,
        execution: str = "streaming",
        strict: bool = False,
        release: str | None = None,
    ) -> None:
        self.arch = get_arch(arch) if isinstance(arch, str) else arch
        self.numerics = EXACT if numerics is None else numerics
        self._form: Format | None = None if self.numerics == EXACT else format_of(self.numerics)
        self.dtype = WAFER_DTYPE if self._form is None else self._form.name
        limit = self.arch.max_systems
        require(
            isinstance(systems, int) and 1 <= systems <= limit,
            f"systems = {systems}; {self.arch.name} allows a whole number from 1 to {limit}",
        )
        require(
            execution in EXECUTIONS, f"execution '{execution}' is unknown; allowed: {', '.join(EXECUTIONS)}"
        )
        self.systems, self.execution, self.strict, self.release = systems, execution, strict, release
        self._capture: Capture | None = None
        self._began_ns = 0
        self.clear()

    @staticmethod
    def active() -> WSE2 | None:
        """The device that is active in this process."""
        return _active

    @property
    def is_active(self) -> bool:
        """Whether the device has been started and not stopped."""
        return self._capture is not None

    @property
    def report(self) -> Report:
        """The report of all regions so far, as one. Raises DeviceError before the first `stop`."""
        if not self.n_regions:
            raise DeviceError("there is no report yet: call start(), run the model, call stop()")
        return self._priced(self.workload, self._host_s)

    @property
    def workload(self) -> Workload:
        """The operators of all regions so far."""
        return self._records.workload()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the settings and what is counted; an open region stays with the original."""
        return self.__dict__ | {"_capture": None}

    def clear(self) -> None:
        """Forget all regions."""
        self._records, self._host_s, self.n_regions = Records(dtype=self.dtype), 0.0, 0

    @_disable_dynamo
    def start(self) -> None:
        """Begin a region. Raises DeviceError if this or another device is active."""
        global _active
        _crossing_s()  # measured before the clock starts
        capture = Capture(
            dtype=self.dtype, form=self._form, strict=self.strict, on_model=self._refuse_too_large
        )
        with _guard:
            if _active is self:
                raise DeviceError("start() called twice: this device is active already; call stop() first")
            if _active is not None:
                raise DeviceError("another WSE2 is active in this process: WSE2.active().stop() ends it")
            _active = self
        try:
            capture.begin()
        except BaseException:
            _active = None
            raise
        self._capture = capture
        self._began_ns = perf_counter_ns()

    @_disable_dynamo
    def stop(self) -> Report:
        """End the region and return its report. PyTorch is as before, whatever happens.

        Raises DeviceError before `start`, in another thread, and when nothing ran; DoesNotFitError, with
        `report` there all the same.
        """
        capture = self._end()
        region = capture.records
        if not region.totals:
            raise DeviceError(
                "no PyTorch operator ran between start() and stop() in this thread: nothing to report"
            )
        host_s = self._host_time(capture)
        self._records.merge(region)
        self._host_s += host_s
        self.n_regions += 1
        report = self._priced(region.workload(), host_s)
        if self.execution == "resident" and not report.fits:
            raise DoesNotFitError(f"the model does not fit on {self.arch.name} as resident: {report.reason}")
        return report

    def __enter__(self) -> WSE2:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        elif self.is_active:  # the region's own error is the one to show
            self._end()

    def _end(self) -> Capture:
        global _active
        capture, ended_ns = self._capture, perf_counter_ns()
        if capture is None:
            raise DeviceError("stop() called before start()")
        if not capture.is_here() and capture.thread.is_alive():
            raise DeviceError("stop() must be called in the thread that called start()")
        try:
            capture.end()
        finally:
            self._capture = None
            _active = None
        self._elapsed_ns = ended_ns - self._began_ns
        return capture

    def _host_time(self, capture: Capture) -> float:
        """Wall time of the region without the time that watching took; at least 1 ns."""
        watching_s = capture.overhead_ns / 1e9 + capture.n_crossings * _crossing_s()
        return max(self._elapsed_ns / 1e9 - watching_s, 1e-9)

    def _priced(self, workload: Workload, host_s: float) -> Report:
        report = price(
            workload,
            self.arch,
            execution=self.execution,
            systems=self.systems,
            release=self.release,
            host_s=host_s,
        )
        return replace(report, assumptions=(*self._assumptions(), *report.assumptions))

    def _assumptions(self) -> Iterator[Assumption]:
        """What is known of the number format that the wafer computes in."""
        simd = f"simd_{self.dtype}"
        if self._form is None:
            chosen = f"the wafer is taken to compute in {self.dtype}; results here are the host's own"
            word = Quantity(WORD_BYTES[self.dtype], "B", Evidence.ASSUMED, chosen)
            yield Assumption.of("word_bytes", word)
        elif self._form.note:
            bias = Quantity(self._form.bias, "exponent", Evidence.ASSUMED, self._form.note)
            yield Assumption.of(f"{self.dtype}_exponent_bias", bias)
        yield Assumption.of(simd, self.arch.quantities()[simd])

    def _refuse_too_large(self, model: nn.Module) -> None:
        """Before a resident model runs: its weights alone must fit."""
        if self.execution != "resident":
            return
        n = sum(p.numel() for p in model.parameters() if not is_lazy(p))
        needed = n * WORD_BYTES[self.dtype]
        room = int(SRAM_SHARE * self.arch.n_pes * self.arch.sram_bytes)
        if needed > room:
            raise DoesNotFitError(
                f"{type(model).__name__} has {n:,} parameters, {format_bytes(needed)} in {self.dtype};"
                f" {self.arch.name} has room for {format_bytes(room)} ({SRAM_SHARE:.0%} of"
                f" {self.arch.n_pes:,} x {format_bytes(self.arch.sram_bytes)}); use execution='streaming'"
                " or a larger wafer"
            )


class _Nothing(TorchDispatchMode):
    """A mode that only passes on and counts, to measure what passing on takes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n_calls += 1
        return func(*args, **(kwargs or {}))


@cache
def _crossing_s() -> float:
    """Seconds that a mode adds to an operator before and after our code runs.

    From a little forward and backward pass with and without a mode that does nothing: the least of a few
    trials of each, over the number of operators.
    """
    x = torch.zeros(2, 4, requires_grad=True)
    weight = torch.zeros(4, 4, requires_grad=True)

    def trial() -> int:
        began = perf_counter_ns()
        for _ in range(_TRIAL_PASSES):
            y = torch.nn.functional.linear(x, weight, weight[0])
            torch.autograd.grad(torch.nn.functional.layer_norm(y + x, (4,)).mul(2).sum(), (x, weight))
        return perf_counter_ns() - began

    with torch.enable_grad(), torch.inference_mode(False):
        plain = min(trial() for _ in range(_TRIALS))
        mode = _Nothing()
        with mode:
            watched = min(trial() for _ in range(_TRIALS))
    return max(0, watched - plain) / (mode.n_calls / _TRIALS) / 1e9


_TRIALS, _TRIAL_PASSES = 6, 10
