"""Predicted values of published measurements: one row in, one figure out, or the reason why not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

from wafergpt.errors import DataError, WaferGPTError, did_you_mean, shown
from wafergpt.units import format_bytes
from wafergpt.wafer.analytic import inference, programs, training
from wafergpt.wafer.analytic.rows import Row
from wafergpt.wafer.analytic.scaling import scaled
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2, WSE3, Arch

HEADER = ("id", "metric", "predicted", "unit", "low", "high", "fidelity", "reason")
SPREAD = 0.15  # assumed half width of the printed interval, in logarithms about: 15 % either way
DEFAULT_BATCH = 64.0  # sequences per system where the source does not print it: within a few % of saturation
TOKENS_PER_PARAMETER = 20.0  # Cerebras-GPT, arXiv 2304.03208


@dataclass(frozen=True)
class Prediction:
    """A modelled figure in `unit`; `cycles` and `clock_hz` where the figure is a time of a program."""

    id: str
    metric: str
    predicted: float | bool | None
    unit: str
    reason: str
    cycles: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row of the output file."""
        if self.predicted is None:
            return (self.id, self.metric, "", self.unit, "", "", "analytic", self.reason)
        if isinstance(self.predicted, bool):
            text = low = high = str(self.predicted).lower()
        else:
            spread = 0.0 if self.unit == "FLOP" else SPREAD
            text, low, high = (f"{self.predicted * f:.6g}" for f in (1.0, 1 / (1 + spread), 1 + spread))
        return (self.id, self.metric, text, self.unit, low, high, "analytic", self.reason)


Answer = tuple[float | bool, str, float | None]  # figure, how it was found, cycles


def _arch(row: Row) -> Arch:
    platform = row.text("platform").upper()
    return WSE3 if "CS-3" in platform or "WSE-3" in platform else WSE2


def _systems(row: Row) -> int:
    systems, arch = row.whole("n_systems", 1), _arch(row)
    if systems > arch.max_systems:
        raise DataError(f"n_systems = {systems} is out of range; {arch.name} allows 1 to {arch.max_systems}")
    return systems


def _per_system_batch(row: Row, systems: int) -> float:
    batch = row.number("batch", DEFAULT_BATCH * systems)
    if batch < systems:
        raise DataError(f"batch = {batch:g} is less than one sequence for each of {systems} systems")
    return batch / systems


def train_samples_per_s(
    shape: Shape, *, batch: float, seq_len: int, systems: int, arch: Arch, release: str
) -> float:
    """Samples/s of training by weight streaming; `batch` sequences per system."""
    step = training.weight_streaming(shape, batch=batch, seq_len=seq_len, arch=arch, release=release)
    return batch / step.total_s * scaled(systems)


def _refuse_beyond(what: str, n_values: float, grid: tuple[int, int], arch: Arch = WSE2) -> None:
    """What must be on the grid at the very least, in 16 bit, must fit in all of its SRAM."""
    needed, room = 2.0 * n_values, float(grid[0] * grid[1] * arch.sram_bytes)
    if needed > room:
        raise DataError(
            f"impossible: {what} {format_bytes(needed)} at 16 bit, and {grid[0]} x {grid[1]} PEs have"
            f" {format_bytes(room)} of SRAM"
        )


def _refuse_layer(shape: Shape, p: int, *, prompt: int = 0, context: int = 0) -> None:
    """One layer is on the grid at a time: its weights, with a prompt's activations or with its cache."""
    n_values = shape.layer_parameters + float(prompt) * shape.d_model + 2.0 * context * shape.kv_width
    with_it = f"and {prompt or context:,} positions take"
    _refuse_beyond(f"one layer's weights {with_it}", n_values, (p, p))


def _refuse_sequence(shape: Shape, seq_len: int, arch: Arch = WSE2) -> None:
    """In training a sequence's activations between two layers are on the wafer."""
    wafer = (arch.width, arch.height)
    _refuse_beyond(f"a sequence of {seq_len:,} positions takes", float(seq_len) * shape.d_model, wafer, arch)


def _train(row: Row) -> Answer:
    shape, arch, systems = row.shape(), _arch(row), _systems(row)
    default = 128 if shape.vocab == 0 else 2048
    seq_len = row.whole("seq_len", default)
    _refuse_sequence(shape, seq_len, arch)
    release = row.text("release")
    note = "CS-3 is an extrapolation by peak; " if arch is WSE3 else ""
    if "pipelin" in row.text("mode").lower():
        rate = training.pipelined_samples_per_s(shape, seq_len=seq_len, arch=arch, release=release)
        return rate, note + "layers laid out as a pipeline; slowest kernel sets the rate", None
    batch = _per_system_batch(row, systems)
    rate = train_samples_per_s(
        shape, batch=batch, seq_len=seq_len, systems=systems, arch=arch, release=release
    )
    how = f"weight streaming, {batch:g} sequences per system"
    cycles = batch * systems / rate * arch.clock_hz
    return rate, note + how + ("" if row.text("batch") else " (assumed)"), cycles


def _prefill(row: Row) -> Answer:
    shape, p, seq_len = row.shape(), row.grid_edge("prefill", 660), row.whole("seq_len", 4096)
    _refuse_layer(shape, p, prompt=seq_len)
    cycles = shape.n_layers * inference.prefill_layer_cycles(shape, seq_len=seq_len, p=p)
    return seq_len * WSE2.clock_hz / cycles, f"{shape.n_layers} layers on {p} x {p} PEs", cycles


def _decode(row: Row) -> Answer:
    shape, p = row.shape(), row.grid_edge("decode", 360)
    context = row.whole("seq_len", 4096)
    _refuse_layer(shape, p, context=context)
    cycles = shape.n_layers * inference.decode_layer_cycles(shape, context=context, p=p)
    return WSE2.clock_hz / cycles, f"{shape.n_layers} layers on {p} x {p} PEs, context {context}", cycles


def _request(row: Row) -> Answer:
    shape = row.shape()
    grids = (row.grid_edge("prefill", 660), row.grid_edge("decode", 360))
    in_len, out_len = row.whole("seq_len", 2048), row.whole("out_len", 128)
    _refuse_layer(shape, grids[0], prompt=in_len)
    _refuse_layer(shape, grids[1], context=in_len + out_len)
    rate = inference.request_tokens_per_s(shape, in_len=in_len, out_len=out_len, grids=grids)
    return rate, f"prefill, re-layout and decode on {grids[0]} and {grids[1]} square", None


def _program(row: Row) -> Answer:
    """Cycles of the program that the group names; the caller turns them into the row's unit."""
    cycles, how = _program_cycles(row)
    group = row.text("group")
    if not _PROGRAMS.search(group):
        how = f"the group {shown(group)} is not known, the other columns are taken to mean: {how}"
    return cycles, how, cycles


_PROGRAMS = re.compile("matvec|gemv|gemm|summa", re.IGNORECASE)


def _program_cycles(row: Row) -> tuple[float, str]:
    group, model = row.text("group").lower(), row.text("model").lower()
    if "matvec" in (group if _PROGRAMS.search(group) else model):
        repeats = re.search(r"x\s?(\d{1,4})$", model)
        n = row.mkn()[2]
        _refuse_beyond("the matrix takes", float(n) * n, (1, 1))
        cycles = programs.matvec_cycles(n, int(repeats[1]) if repeats else 10)
        return cycles, f"{n} columns padded to four words, one PE"
    m, k, n = row.mkn()
    factors, what = float(k) * (m + n), "both factors take"
    if "gemv" in group or (m == 1 and "summa" not in group):
        p = row.grid_edge("", 750)
        _refuse_beyond(what, factors, (p, p))
        return programs.gemv_cycles(k, n, p), f"two-phase tree all-reduce on {p} x {p} PEs"
    if "summa" in group or "summa" in model:
        grid = row.grids().get("") or (row.grid_edge(""),) * 2
        _refuse_beyond(what, factors, grid)
        return programs.summa_cycles(m, k, n, grid), f"SUMMA in float32 on {grid[0]} x {grid[1]} PEs"
    p = row.grid_edge("", 750)
    _refuse_beyond(what, factors, (p, p))
    return programs.mesh_gemm_cycles(m, k, n, p), f"cyclic shifts of two hops on {p} x {p} PEs"


def _clock(row: Row) -> float:
    return WSE2.clock_sdk_hz if row.text("group") == "gemm_summa_csl" else WSE2.clock_hz


def _time(row: Row, factor: float) -> Answer:
    cycles, how, _ = _program(row)
    return cycles / _clock(row) * factor, how, cycles


def _utilization(row: Row) -> Answer:
    first = Shape(n_layers=10, d_model=768, d_ffn=3072, n_heads=12, n_kv_heads=12, vocab=50257)
    release = row.text("release")

    def per_system(shape: Shape, batch: float, seq_len: int, systems: int) -> float:
        rate = train_samples_per_s(
            shape, batch=batch, seq_len=seq_len, systems=systems, arch=WSE2, release=release
        )
        return rate * seq_len * shape.reported_flops_per_token(seq_len) / systems

    systems, seq_len = _systems(row), row.whole("seq_len", 2048)
    _refuse_sequence(row.shape(), seq_len)
    batch = _per_system_batch(row, systems)
    ratio = per_system(row.shape(), batch, seq_len, systems) / per_system(first, 120.0, 2048, 1)
    return ratio, f"reported FLOPs per second and system, {batch:g} sequences each, over 111M's", None


def _flops(row: Row) -> Answer:
    shape, seq_len = row.shape(), row.whole("seq_len", 2048)
    tokens = TOKENS_PER_PARAMETER * shape.parameters_with_vectors(seq_len)
    return (
        shape.reported_flops_per_token(seq_len) * tokens,
        f"{tokens:.4g} tokens (20 per parameter), model-card convention",
        None,
    )


def _max_decode(row: Row, shifted: bool) -> Answer:
    shape, p = row.shape(), row.grid_edge("decode", 360)
    tokens = inference.max_decode_tokens(shape, p=p, shifted=shifted)
    if not tokens:
        raise DataError(f"impossible: the weights of {shape.n_layers} layers leave no SRAM for a cache")
    return tokens, f"free SRAM of {'all rows' if shifted else 'one row'} of {p} x {p} regions", None


def _out_of_memory(row: Row) -> Answer:
    shape, arch = row.shape(), _arch(row)
    if row.text("mode").lower() in ("prefill", "decode", "inference", "request", "end_to_end"):
        context = row.whole("seq_len", 4096) + (row.whole("out_len", 1) if row.text("out_len") else 0)
        return (
            not inference.inference_fits(shape, context=context, arch=arch),
            "weights and cache in SRAM",
            None,
        )
    fits = training.training_fits(shape, seq_len=row.whole("seq_len", 2048), arch=arch)
    return not fits, "one sequence's activations of one layer in SRAM", None


METRICS: dict[str, tuple[str, Callable[[Row], Answer]]] = {
    "train_throughput": ("samples/s", _train),
    "prefill_throughput": ("tok/s", _prefill),
    "decode_throughput": ("tok/s", _decode),
    "throughput_per_request": ("tok/s", _request),
    "latency": ("ms", lambda row: _time(row, 1e3)),
    "time": ("us", lambda row: _time(row, 1e6)),
    "cycles": ("cycles", _program),
    "flops_utilization_relative_to_111M_on_1_CS2": ("ratio", _utilization),
    "max_decode_len_concat_kv": ("tokens", lambda row: _max_decode(row, False)),
    "max_decode_len_shift_kv": ("tokens", lambda row: _max_decode(row, True)),
    "training_flops_reported": ("FLOP", _flops),
    "out_of_memory": ("bool", _out_of_memory),
}


def predict(row: Row) -> Prediction:
    """The modelled figure of `row`; what cannot be modelled has `predicted` None and the reason."""
    name, metric = row.text("id"), row.text("metric")
    unit = row.text("unit")
    if metric not in METRICS:
        hint = did_you_mean(metric, list(METRICS)) or f"; known: {', '.join(METRICS)}"
        reason = f"no model for the metric '{metric[:60]}'{hint}"
        return Prediction(name, metric, None, unit, reason)
    unit, answer = METRICS[metric]
    unit = row.text("unit") or unit
    try:
        figure, how, cycles = answer(row)
    except (DataError, WaferGPTError) as error:
        return Prediction(name, metric, None, unit, str(error))
    except (OverflowError, ZeroDivisionError, MemoryError):
        return Prediction(name, metric, None, unit, "the row's numbers are out of the model's range")
    spent = "" if cycles is None else f"; {cycles:.0f} cycles at {_clock(row) / 1e9:g} GHz"
    return Prediction(name, metric, figure, unit, f"modelled: {how}{spent}", cycles)


def as_csv(predictions: list[Prediction]) -> str:
    """The output file's text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(p.cells() for p in predictions)
    return text.getvalue()


def error_of(predicted: float, published: float) -> float:
    """max(p / v, v / p) - 1."""
    return max(predicted / published, published / predicted) - 1.0
