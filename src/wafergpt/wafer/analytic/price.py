"""The modelled cost of a workload: a list of operators, captured or described, on one or several wafers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wafergpt.config import require
from wafergpt.wafer.analytic.parameters import PARAMETERS, release_efficiency, value
from wafergpt.wafer.analytic.programs import all_reduce_cycles, ceil_div
from wafergpt.wafer.analytic.scaling import scaled
from wafergpt.wafer.arch import WSE2, Arch
from wafergpt.wafer.report import Assumption, OpCost, Report, Unmapped

FUNCTIONS = ("softmax", "gelu", "layer_norm", "cross_entropy")
EXECUTIONS = ("streaming", "resident")
SRAM_SHARE = 0.9  # assumed: a tenth for code, stack and buffers
DECODE_EDGE = 360  # published: the auto-tuned decode grid of an 8B model (WaferLLM)


class PricedOp(Protocol):
    """What `price` needs of `workload.Op`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def m(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def n_elements(self) -> int: ...
    @property
    def n_flops(self) -> float: ...
    @property
    def in_bytes(self) -> float: ...
    @property
    def out_bytes(self) -> float: ...
    @property
    def weight_bytes(self) -> float: ...
    @property
    def shapes(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def host_s(self) -> float: ...


class PricedWorkload(Protocol):
    """What `price` needs of `workload.Workload`."""

    @property
    def ops(self) -> Sequence[PricedOp]: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def parameters_bytes(self) -> float: ...
    @property
    def activation_bytes_peak(self) -> float: ...
    @property
    def description(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def n_rows_at_once(self) -> int: ...


class _Costs:
    """Cycles of operators by part, for one execution, on one system that has 1 / systems of the batch."""

    def __init__(
        self, arch: Arch, execution: str, systems: int, release: str | None, workload: PricedWorkload
    ) -> None:
        self.arch, self.vocab, self.simd = arch, _vocabulary(workload), arch.simd[workload.dtype]
        self.is_streaming, self.share = execution == "streaming", 1.0 / scaled(systems)
        rate = value("training_share_of_peak") * arch.peak_flops_per_s * release_efficiency(release)
        rate *= arch.n_pes / _full_size(arch) * self.simd / arch.simd["fp16"]
        self.flops_per_cycle = rate / arch.clock_hz

    def of(self, op: PricedOp) -> dict[str, float]:
        """Cycles of one execution of `op` by part of the report."""
        kind = str(op.kind)
        lanes = self.arch.n_pes * self.simd / self.share
        if kind == "view":
            return {}
        if kind == "host":
            seconds = op.host_s + (op.in_bytes + op.out_bytes) / self.arch.io_bytes_per_s
            return {"host": seconds * self.arch.clock_hz}
        if kind == "matmul":
            return self._matmul(op)
        if kind == "optimizer":
            if not self.is_streaming:
                return {"compute": op.n_flops / (self.arch.n_pes * self.arch.simd["fp32"])}
            return {}  # on MemoryX, between the streams: inside the exposed latency
        per_element = value("function_cycles") if kind in FUNCTIONS else 2.0
        parts = {"compute": max(1.0, per_element * max(op.n_elements, op.in_bytes / 2.0) / lanes)}
        if kind in ("reduce", "layer_norm", "softmax", "cross_entropy"):
            parts["reduction"] = float(self.arch.width + self.arch.height)
        if kind in ("move", "embedding"):
            parts["fabric"] = op.out_bytes * self.share / (self.arch.n_pes * self.arch.link_bits / 8)
        return parts

    def _matmul(self, op: PricedOp) -> dict[str, float]:
        compute = op.n_flops * self.share / self.flops_per_cycle
        if self.vocab and self.vocab in (op.m, op.k, op.n):
            compute *= value("head_cost_factor")
        edge = min(DECODE_EDGE, self.arch.width, self.arch.height)
        if not self.is_streaming:
            return {"compute": compute, "reduction": all_reduce_cycles(ceil_div(max(op.n, 1), edge), edge)}
        if not op.weight_bytes:
            return {"compute": compute, "fabric": float(self.arch.width + self.arch.height)}
        per_layer = value("weight_products_per_layer")
        scale = self.arch.clock_hz
        delivery = scale * (
            value("layer_delivery_s") / per_layer + op.weight_bytes / self.arch.io_bytes_per_s
        )
        exposed = scale * value("layer_exposed_s") / per_layer
        return {"compute": compute, "weight_streaming": max(0.0, delivery - compute) + exposed}


def _full_size(arch: Arch) -> float:
    """PEs to which `peak_flops_per_s` belongs: the advertised ones of a whole wafer's rectangle."""
    whole = arch.figures.get("program_width")
    return float(arch.n_pes) if whole is not None else float(arch.n_pes_advertised)


def price(
    workload: PricedWorkload,
    arch: Arch = WSE2,
    *,
    execution: str = "streaming",
    systems: int = 1,
    release: str | None = None,
    host_s: float | None = None,
) -> Report:
    """The modelled cost of running `workload` once. `host_s`: what the host took for it, if measured.

    Raises ConfigError for an unknown execution or a number of systems that the wafer's network cannot join.
    """
    require(execution in EXECUTIONS, f"execution '{execution}' is unknown; allowed: {', '.join(EXECUTIONS)}")
    require(
        1 <= systems <= arch.max_systems, f"systems = {systems}; {arch.name} allows 1 to {arch.max_systems}"
    )
    costs = _Costs(arch, execution, systems, release, workload)
    parts = dict.fromkeys(("compute", "weight_streaming", "fabric", "reduction", "host"), 0.0)
    rows: dict[tuple[str, ...], OpCost] = {}
    unmapped, n_flops = [], 0.0
    for op in workload.ops:
        spent = {name: cycles * op.count for name, cycles in costs.of(op).items()}
        for name, cycles in spent.items():
            parts[name] += cycles
        n_flops += op.n_flops * op.count
        total = sum(spent.values())
        if str(op.kind) == "host":
            unmapped.append(
                Unmapped(name=op.name, shapes=op.shapes, count=op.count, host_s=total / arch.clock_hz)
            )
        _add_row(rows, op, total)
    cycles = sum(parts.values())
    modelled_s = cycles / arch.clock_hz
    fits, reason, sram = _memory(workload, arch, execution, systems)
    return Report(
        fidelity="analytic",
        arch=arch.name,
        execution=execution,
        systems=systems,
        cycles=cycles,
        clock_hz=arch.clock_hz,
        modelled_s=modelled_s,
        breakdown_cycles=parts,
        share_of_peak=n_flops / max(modelled_s * systems * _peak(arch), 1e-30),
        samples_per_s=workload.n_samples / max(modelled_s, 1e-30),
        tokens_per_s=workload.n_tokens / max(modelled_s, 1e-30),
        sram_bytes_per_pe=sram,
        fits=fits,
        reason=reason,
        energy_j=arch.power_w * systems * modelled_s,
        host_measured_s=host_s,
        modelled_speedup=None if host_s is None else host_s / max(modelled_s, 1e-30),
        description=workload.description,
        unmapped=tuple(unmapped),
        assumptions=_assumptions(arch),
        per_op=tuple(rows.values()),
    )


def _vocabulary(workload: PricedWorkload) -> int:
    """Width of the logits: the `n` of the loss; 0 without a loss."""
    return max((op.n for op in workload.ops if str(op.kind) == "cross_entropy"), default=0)


def _add_row(rows: dict[tuple[str, ...], OpCost], op: PricedOp, cycles: float) -> None:
    """Operators that differ in their weights alone share a row."""
    key = (op.name, str(op.kind), op.phase, op.shapes)
    count, n_flops = op.count, op.n_flops * op.count
    n_bytes, weight_bytes = (op.in_bytes + op.out_bytes) * op.count, op.weight_bytes * op.count
    if key in rows:
        before = rows[key]
        count, n_flops, cycles = count + before.count, n_flops + before.n_flops, cycles + before.cycles
        n_bytes, weight_bytes = n_bytes + before.n_bytes, weight_bytes + before.weight_bytes
    rows[key] = OpCost(
        name=op.name,
        kind=str(op.kind),
        phase=op.phase,
        shapes=op.shapes,
        count=count,
        n_flops=n_flops,
        cycles=cycles,
        n_bytes=n_bytes,
        weight_bytes=weight_bytes,
    )


def _peak(arch: Arch) -> float:
    return arch.peak_flops_per_s * arch.n_pes / _full_size(arch)


def _memory(
    workload: PricedWorkload, arch: Arch, execution: str, systems: int
) -> tuple[bool, str, dict[str, float]]:
    """Whether it fits, why, and bytes per PE. Streaming keeps activations only, resident the weights too."""
    room = SRAM_SHARE * arch.n_pes * arch.sram_bytes
    per_system = max(1, -(-workload.n_rows_at_once // systems))
    per_sample = workload.activation_bytes_peak / max(workload.n_rows_at_once, 1)
    has_backward = any(op.phase in ("backward", "optimizer") for op in workload.ops)
    # training: weight, gradient, two moments, beside a 16-bit weight a 32-bit copy: 16 bytes in any format
    trained = 4.0 if workload.dtype == "fp32" else 8.0
    state = trained if has_backward else 1.0
    resident = workload.parameters_bytes * state if execution == "resident" else 0.0
    room -= resident
    micro = max(1, min(per_system, int(room / max(per_sample, 1.0)))) if room > 0 else 1
    needed = resident + micro * per_sample
    used = needed / arch.n_pes
    fits = room > 0 and per_sample <= room
    what = f"{resident / 1e9:.3g} GB of weights and state and " if resident else ""
    reason = (
        f"{what}{micro * per_sample / 1e9:.3g} GB of activations (micro-batch {micro}) in "
        f"{SRAM_SHARE * arch.n_pes * arch.sram_bytes / 1e9:.3g} GB of SRAM"
    )
    return fits, reason, {"used": used, "largest": used}


def _assumptions(arch: Arch) -> tuple[Assumption, ...]:
    hardware = ("peak_flops_per_s", "clock_hz", "io_bytes_per_s", "sram_bytes", "power_w")
    figures = [Assumption.of(name, arch.quantities()[name]) for name in hardware]
    return tuple(figures + [Assumption.of(name, quantity) for name, quantity in PARAMETERS.items()])
