"""From executed operators to the wafer's workload: translation, merging of equal ones, totals."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from wafergpt.devices.operators import Call, Cost, costs_of, size_of
from wafergpt.devices.tracking import Memory, Weight
from wafergpt.wafer.workload import PHASES, WORD_BYTES, Op, OpKind, Workload

_SHOWN_TENSORS = 4
_SHOWN_MODULES = 3


@dataclass
class _Total:
    count: int = 0
    host_s: float = 0.0


@dataclass
class _Model:
    """How often and with how much an outermost module was called."""

    name: str
    n_rows: int = 0
    n_tokens: int = 0
    n_rows_at_once: int = 0


@dataclass
class Records:
    """Everything that ran, equal operators merged. `dtype`: the wafer's format, which sets the bytes."""

    dtype: str
    totals: dict[Op, _Total] = field(default_factory=dict)
    # by module; one that is gone keeps its entry, whoever gets its address
    models: dict[weakref.ref[nn.Module], _Model] = field(default_factory=dict)
    n_parameters: int = 0
    activation_bytes_peak: float = 0.0

    def add(self, op: Op, host_s: float) -> None:
        """One more execution of `op` (given with count 1 and host_s 0), which took the host `host_s`."""
        total = self.totals.setdefault(op, _Total())
        total.count += 1
        total.host_s += host_s

    def add_call(self, module: nn.Module, n_rows: int, n_tokens: int) -> None:
        """One call of an outermost module."""
        model = self.models.setdefault(weakref.ref(module), _Model(type(module).__name__))
        model.n_rows += n_rows
        model.n_tokens += n_tokens
        model.n_rows_at_once = max(model.n_rows_at_once, n_rows)

    def merge(self, other: Records) -> None:
        """Add another region of the same device."""
        for op, total in other.totals.items():
            mine = self.totals.setdefault(op, _Total())
            mine.count += total.count
            mine.host_s += total.host_s
        for key, model in other.models.items():
            mine_of = self.models.setdefault(key, _Model(model.name))
            mine_of.n_rows += model.n_rows
            mine_of.n_tokens += model.n_tokens
            mine_of.n_rows_at_once = max(mine_of.n_rows_at_once, model.n_rows_at_once)
        self.n_parameters = max(self.n_parameters, other.n_parameters)
        self.activation_bytes_peak = max(self.activation_bytes_peak, other.activation_bytes_peak)

    def workload(self) -> Workload:
        """The whole. Samples and tokens are those of the module that saw the most tokens."""
        ops = tuple(
            replace(op, count=total.count, host_s=total.host_s / total.count)
            for op, total in self.totals.items()
        )
        main = max(self.models.values(), key=lambda m: m.n_tokens, default=_Model("tensors", 0, 0, 1))
        seen = {op.phase for op in ops if op.kind is not OpKind.VIEW}
        phases = [phase for phase in PHASES if phase in seen]
        return Workload(
            ops=ops,
            n_samples=main.n_rows,
            n_tokens=main.n_tokens,
            n_parameters=self.n_parameters,
            parameters_bytes=float(self.n_parameters * WORD_BYTES[self.dtype]),
            activation_bytes_peak=self.activation_bytes_peak,
            description=f"{self._names()}, captured: {', '.join(phases)}",
            dtype=self.dtype,
            n_rows_at_once=max(main.n_rows_at_once, 1),
        )

    def _names(self) -> str:
        """The outermost modules that ran, each name once; of many the first ones."""
        names = list(dict.fromkeys(model.name for model in self.models.values())) or ["tensors"]
        rest = len(names) - _SHOWN_MODULES
        return ", ".join(names[:_SHOWN_MODULES]) + (f" and {rest} more" if rest > 0 else "")


def shapes_of(inputs: Sequence[Tensor]) -> str:
    """`[2, 4] [4, 8]`; of a long list only what it holds together."""
    if len(inputs) > _SHOWN_TENSORS:
        return f"{len(inputs)} tensors, {sum(size_of(x) for x in inputs)} elements"
    return " ".join(f"nested of {size_of(x)}" if x.is_nested else str(list(x.shape)) for x in inputs)


def translate(call: Call, full_name: str, phase: str, memory: Memory) -> list[Op]:
    """The operators of the workload that one call is, each of count 1."""
    if not call.is_mapped:
        return [_on_the_host(call, full_name, phase)]
    return [_op(cost, call, full_name, phase, memory) for cost in costs_of(call)]


def _on_the_host(call: Call, full_name: str, phase: str) -> Op:
    """Its inputs leave the wafer and its results come back, in the host's own formats."""
    return Op(
        name=full_name,
        kind=OpKind.HOST,
        phase=phase,
        n_elements=call.n_out,
        in_bytes=float(sum(size_of(x) * x.element_size() for x in call.inputs)),
        out_bytes=float(sum(size_of(x) * x.element_size() for x in call.outputs)),
        shapes=shapes_of(call.inputs),
        dtype=_dtype(call.outputs or call.inputs),
    )


def _op(cost: Cost, call: Call, full_name: str, phase: str, memory: Memory) -> Op:
    name = f"{full_name}/{cost.part}" if cost.part else full_name
    if cost.kind is OpKind.VIEW:
        return Op(name=name, kind=cost.kind, phase=phase)
    held = [(x, memory.weight(x)) for x in call.inputs] if cost.holds_weight else []
    weights = [(x, weight) for x, weight in held if weight is not None]
    in_bytes = float(
        sum(memory.n_bytes(x) for x in call.inputs) if cost.reads is None else cost.reads * memory.word_bytes
    )
    weight_bytes = sum(memory.n_bytes(x) for x, _ in weights)
    out_bytes = sum(memory.n_bytes(x) for x in call.outputs)
    return op_of(
        cost,
        name=name,
        phase=phase,
        in_bytes=in_bytes,
        out_bytes=float(cost.n_elements * memory.word_bytes if cost.part else out_bytes),
        weights=[weight for _, weight in weights],
        weight_bytes=min(weight_bytes, in_bytes),
        labels=(shapes_of(call.inputs), _dtype(call.outputs or call.inputs)),
    )


def op_of(
    cost: Cost,
    *,
    name: str,
    phase: str,
    in_bytes: float,
    out_bytes: float,
    weights: Sequence[Weight],
    weight_bytes: float,
    labels: tuple[str, str],
) -> Op:
    """The workload's operator of a cost; `labels`: its shapes and dtype, for the reader."""
    is_update = phase == "optimizer"
    return Op(
        name=name,
        kind=OpKind.OPTIMIZER if is_update else cost.kind,
        phase=phase,
        m=cost.m,
        k=cost.k,
        n=cost.n,
        batch=cost.batch,
        n_elements=cost.n_elements,
        n_flops=cost.n_flops,
        in_bytes=in_bytes,
        out_bytes=out_bytes,
        weight_bytes=weight_bytes,
        weight_names=tuple(dict.fromkeys(weight.name for weight in weights)),
        shapes=labels[0],
        dtype=labels[1],
    )


def _dtype(tensors: Sequence[Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
