"""Watching PyTorch: every operator between `start` and `stop`, with its phase, its time and its parameters.

Operators are seen below autograd, where forward, backward and optimiser alike call them, by a
TorchDispatchMode. It changes nothing: the same kernels run on the same tensors. Kernels of this package that
PyTorch does not see are watched at `ops.watch`. A phase is what PyTorch says it is: backward while the
autograd engine runs a node, optimizer inside `Optimizer.step`. Outside both, work on gradients is backward
(clipping), giving a parameter its first values is initialisation, any other writing to one optimizer, and
the rest forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from wafergpt.devices import rounding
from wafergpt.devices.errors import DeviceError, UnmappedOperatorError
from wafergpt.devices.native_calls import Library, NativeCall
from wafergpt.devices.numerics import Format
from wafergpt.devices.operators import VIEWS, Call, base_name, is_mapped, is_mapped_on, tensors
from wafergpt.devices.records import Records, op_of, shapes_of, translate
from wafergpt.devices.tracking import Memory, rows_and_tokens
from wafergpt.ops import watch
from wafergpt.wafer.workload import WORD_BYTES

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class Capture(TorchDispatchMode):
    """One region of one thread. `form`: what operators are rounded to; None leaves every result alone."""

    supports_higher_order_operators = True

    def __init__(
        self,
        *,
        dtype: str,
        form: Format | None = None,
        strict: bool = False,
        on_model: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records = Records(dtype=dtype)
        self.memory = Memory(word_bytes=WORD_BYTES[dtype])
        self.form, self.strict, self.on_model = form, strict, on_model
        self.thread = threading.current_thread()
        self.overhead_ns = 0
        self.n_crossings = 0
        self._depth = 0  # modules that are being called
        self._spans, self._step_spans = 0, 0  # PyTorch's named spans that are open; and at the step's begin
        self._in_step = False
        self._has_gradients = False  # a backward pass has run
        self._outside = ExitStack()

    # Entering and leaving -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to watch this thread."""
        with self._outside:  # what has been set up is undone if the rest fails
            for handle in (
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
                register_module_forward_pre_hook(self._before_module),
                register_module_forward_hook(self._after_module, with_kwargs=True, always_call=True),
            ):
                self._outside.callback(handle.remove)
            library_of = cache(lambda library: Library(library, self._around_native))
            self._outside.enter_context(watch.watched(library_of))
            if self.form is not None:
                self._outside.enter_context(watch.torch_only())
            # torch.compile steps aside under a mode, but with an error where a full graph is asked for
            self._outside.enter_context(torch.compiler.set_stance("force_eager"))
            self._outside.callback(self._leave)
            self.__enter__()  # type: ignore[no-untyped-call]
            self._outside = self._outside.pop_all()

    def end(self) -> None:
        """Stop to watch and count up."""
        self._outside.close()
        self.records.n_parameters = self.memory.n_parameters
        self.records.activation_bytes_peak = self.memory.activation_bytes_peak
        self.memory.close()

    def _leave(self) -> None:
        """Take this mode off the stack, also when others were entered since and not left yet; they stay."""
        if not self.is_here():  # the thread has ended, and its stack with it
            return
        above = []
        while (mode := _python_dispatch._get_current_dispatch_mode()) is not None and mode is not self:
            above.append(_python_dispatch._pop_mode())
        try:
            if mode is None:
                raise DeviceError("start() was called inside a dispatch mode that ended before stop()")
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        finally:
            for other in reversed(above):
                _python_dispatch._push_mode(other)

    def is_here(self) -> bool:
        """Whether this is the thread that is watched."""
        return threading.current_thread() is self.thread

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step begins. What its closure runs is a forward and a backward pass as anywhere else."""
        if not self.is_here():
            return None
        self._in_step, self._step_spans = True, self._spans

        def wrapped(closure: Any) -> Any:
            is_one = callable(closure) and not isinstance(closure, nn.Module)
            return partial(self._closure, closure) if is_one else closure

        kwargs = {name: wrapped(x) if name == "closure" else x for name, x in kwargs.items()}
        return (*args[:1], *map(wrapped, args[1:2]), *args[2:]), kwargs

    def _closure(self, closure: Callable[[], Any]) -> Any:
        self._in_step = False
        result = closure()
        self._in_step = self._spans >= self._step_spans
        return result

    def _after_step(self, *_: Any) -> None:
        self._in_step = self._in_step and not self.is_here()

    def _span(self, name: str) -> None:
        """PyTorch opens a span around a step and closes it whatever happens inside."""
        self._spans += {"_record_function_enter_new": 1, "_record_function_exit": -1}.get(name, 0)
        self._in_step = self._in_step and self._spans >= self._step_spans

    def _before_module(self, module: nn.Module, _: Any) -> None:
        began = perf_counter_ns()
        if not self.is_here():
            return
        if self._depth == 0 and next(module.parameters(), None) is not None:
            self.memory.name_parameters(module)
            if self.on_model is not None:
                self.on_model(module)
        self._depth += 1
        self.overhead_ns += perf_counter_ns() - began

    def _after_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """`rest` is (kwargs, result), but (result,) after an error in the module."""
        began = perf_counter_ns()
        if not self.is_here():
            return
        self._depth = max(0, self._depth - 1)  # a region may begin inside a module
        if self._depth == 0 and len(rest) == 2 and next(module.parameters(), None) is not None:
            rows, n_tokens = rows_and_tokens((*args, *rest[0].values()))
            self.records.add_call(module, rows, n_tokens)
        self.overhead_ns += perf_counter_ns() - began

    # Operators ------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        came = perf_counter_ns()
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if not torch._C._dispatch_has_kernel(func.name()):  # a tensor asked for its size or device in Python
            return func(*args, **kwargs)
        name = base_name(func._schema.name)
        if func.namespace == "profiler":
            self._span(name)
            return func(*args, **kwargs)
        inputs = tensors(args) + tensors(kwargs)
        if (
            not is_mapped(name)
            and not func.is_view
            and func.has_kernel_for_dispatch_key(_COMPOSITE)
            and not any(x.is_nested for x in inputs)  # which have kernels of their own
        ):
            with self:  # under inference_mode an operator arrives before PyTorch has taken it apart
                return func.decompose(*args, **kwargs)
        is_view = func.is_view or name in VIEWS
        written = _written(func, args, kwargs)
        phase = self._phase(inputs, written, name)
        if not is_view and not is_mapped_on(name, inputs):
            self._refuse_if_strict(func._schema.name, inputs)
        form = None if is_view or phase in ("initialisation", "optimizer") else self.form
        ids = {id(x) for x in written}
        if form is not None and name not in rounding.MOVES:
            args = rounding.round_inputs(tuple(args), form, self.memory, ids)
            kwargs = rounding.round_inputs(kwargs, form, self.memory, ids)
        began = perf_counter_ns()
        result = func(*args, **kwargs)
        ended = perf_counter_ns()
        if form is not None:
            rounding.round_written(written, form)
            result = rounding.round_results(result, name, form, ids)
        outputs = tensors(result) or written
        shown = "alias" if is_view and not is_mapped(name) else name
        call = Call(name=shown, args=args, kwargs=kwargs, inputs=inputs, outputs=outputs)
        self._record(call, func._schema.name, phase, ended - began, is_rounded=form is not None)
        self.n_crossings += 1
        self.overhead_ns += (began - came) + (perf_counter_ns() - ended)
        return result

    def _refuse_if_strict(self, name: str, inputs: Sequence[Tensor]) -> None:
        if self.strict:
            raise UnmappedOperatorError(
                f"the wafer has no program for {name} {shapes_of(inputs)}, and strict=True"
            )

    def _higher_order(self, func: HigherOrderOperator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One that takes functions, as a conditional does: the host runs it as a whole."""
        inputs = tensors(args) + tensors(kwargs)
        name, phase, form = f"higher_order::{func.name()}", self._phase(inputs, ()), self.form
        self._refuse_if_strict(name, inputs)
        if form is not None:
            args = rounding.round_inputs(tuple(args), form, self.memory, set())
        began = perf_counter_ns()
        result = func(*args, **kwargs)
        ended = perf_counter_ns()
        if form is not None:
            result = rounding.round_results(result, "", form, set())
        call = Call(name=name, args=args, kwargs=kwargs, inputs=inputs, outputs=tensors(result))
        self._record(call, name, phase, ended - began, is_rounded=form is not None)
        self.overhead_ns += perf_counter_ns() - ended
        return result

    def _record(self, call: Call, full_name: str, phase: str, elapsed_ns: int, *, is_rounded: bool) -> None:
        first, *rest = translate(call, full_name, phase, self.memory)
        self.records.add(first, elapsed_ns / 1e9)
        for op in rest:
            self.records.add(op, 0.0)
        source = self.memory.weight(call.inputs[0]) if len(call.inputs) == 1 and _copies(call.name) else None
        self.memory.add(call.outputs, phase, copy_of=source, is_rounded=is_rounded)

    def _phase(self, inputs: Sequence[Tensor], written: Sequence[Tensor], name: str = "") -> str:
        if torch._C._current_autograd_node() is not None:
            self._has_gradients = True
            return "backward"
        if self._in_step:
            return "optimizer"
        parameters = [x for x in written if self.memory.weight(x) is not None]
        if parameters:
            reads = len(inputs) > len(written) and not _copies(name.removesuffix("_"))
            has_gradients = self._has_gradients or any(x.is_leaf and x.grad is not None for x in parameters)
            return "optimizer" if reads or has_gradients else "initialisation"
        return "backward" if any(self.memory.phase_of(x) == "backward" for x in inputs) else "forward"

    def _around_native(self, call: NativeCall, run: Callable[[], Any]) -> Any:
        came = perf_counter_ns()
        weights = [w for p in call.pointers if (w := self.memory.weight_at(p)) is not None]
        word = self.memory.word_bytes
        phase = call.phase or self._phase((), ())
        began = perf_counter_ns()
        result = run()
        elapsed_s = (ended := perf_counter_ns()) - began
        for position, cost in enumerate(call.costs):
            reads = cost.n_elements if cost.reads is None else cost.reads
            held = [w for w in weights if cost.holds_weight]
            op = op_of(
                cost,
                name=f"wafergpt::{call.name.removeprefix('wg_')}" + (f"/{cost.part}" if cost.part else ""),
                phase=phase,
                in_bytes=float(reads * word),
                out_bytes=float(cost.n_elements * word),
                weights=held,
                weight_bytes=float(min(sum(w.n_elements for w in held), reads) * word),
                labels=(call.shapes, ""),
            )
            self.records.add(op, 0.0 if position else elapsed_s / 1e9)
        self.overhead_ns += (began - came) + (perf_counter_ns() - ended)
        return result


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that the operator's schema says it writes to."""
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += tensors(value)
    return found


def _copies(name: str) -> bool:
    """Whether an operator of one input gives the same values again, in another type or order."""
    return name in ("_to_copy", "clone", "_unsafe_view", "contiguous", "copy")
