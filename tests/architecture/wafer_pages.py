"""The tables of the wafer's pages, made from the code. Run this file to write them; a test compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wafergpt.model.family import FAMILY
from wafergpt.wafer.analytic import inference, training
from wafergpt.wafer.analytic import plan as planner
from wafergpt.wafer.analytic.parameters import value
from wafergpt.wafer.analytic.rows import GPT3_SHAPES, shape_of
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import SIMULATED, WSE2, WSE3, Arch, Quantity

DOCS = Path(__file__).resolve().parents[2] / "docs/explanation"
SIZES = ("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")
SMALL_BATCH = 8  # sequences per step
EDGES = (120, 360, 660)  # of the squares of PEs that decode
STATE_BYTES = 16.0  # per parameter that trains: 32-bit weight, gradient, two moments


def hardware_table(arch: Arch, but: Arch | None = None) -> str:
    """Every number of a wafer; with `but`, those that differ from that wafer's."""
    known = but.quantities() if but else {}
    rows = [(name, q) for name, q in arch.quantities().items() if known.get(name) != q]
    return _table(("figure", "value", "how known", "source"), [_row(name, q) for name, q in rows])


def _row(name: str, quantity: Quantity) -> tuple[str, ...]:
    value = f"{quantity.value:,.10g}" if quantity.value < 1e7 else f"{quantity.value:.4g}"
    return f"`{name}`", f"{value} {quantity.unit}", quantity.evidence.value, quantity.source


def timing_table() -> str:
    """What the simulator charges."""
    return _table(("field", "value", "how known", "source or meaning"), _simulated(functions=False))


def function_table() -> str:
    """Cycles per element of the functions."""
    return _table(("function", "value", "how known", "how"), _simulated(functions=True))


def _simulated(*, functions: bool) -> list[tuple[str, ...]]:
    return [_row(n, q) for n, q in SIMULATED.items() if n.startswith("function_") == functions]


def training_table() -> str:
    """Samples/s of one WSE-2 by mode, and what decides which is possible. All modelled."""
    head = ("model", f"streaming, batch {SMALL_BATCH}", "streaming, best batch", "whole model, pipelined")
    rows = []
    for size in (*SIZES, "GPT-3 175B"):
        shape, seq_len = _shape(size)
        plan = planner.plan(size, shape, seq_len=seq_len)
        small = SMALL_BATCH / training.weight_streaming(shape, batch=SMALL_BATCH, seq_len=seq_len).total_s
        pipelined = training.pipelined_samples_per_s(shape, seq_len=seq_len)
        state = STATE_BYTES * shape.n_parameters
        fits = state + training.working_bytes(shape, seq_len=seq_len) <= 0.9 * WSE2.n_pes * WSE2.sram_bytes
        rows.append(
            (
                size,
                _three(small),
                f"{_three(plan.samples_per_s)} (batch {plan.best_batch_per_system})",
                _three(pipelined) if fits else "does not fit",
                f"{_three(state / 1e9)} GB",
                f"{_three(plan.run_s / 86400)} days",
            )
        )
    return _table((*head, "state to train", "compute-optimal run"), rows)


def inference_table() -> str:
    """Tokens/s of one sequence on one WSE-2, decode on squares of PEs of several sizes. All modelled."""
    rows = []
    for size in (*SIZES, "GPT-3 175B"):
        shape, seq_len = _shape(size)
        plan = planner.plan(size, shape, seq_len=seq_len)
        decode = [_decode(shape, seq_len, edge) for edge in EDGES]
        resident = f"{_three(2.0 * shape.n_parameters / 1e9)} GB" + (
            "" if plan.inference_fits else ": too large"
        )
        rows.append((size, resident, _three(plan.prefill_tokens_per_s), *decode))
    squares = [f"decode, {edge} x {edge}" for edge in EDGES]
    prefill = f"prefill, {planner.PREFILL_EDGE} x {planner.PREFILL_EDGE}"
    return _table(("model", "weights, 16 bit", prefill, *squares), rows)


def _decode(shape: Shape, context: int, edge: int) -> str:
    """Tokens/s on edge x edge PEs, if they can hold a layer's weights."""
    room = edge * edge * (WSE2.sram_bytes - value("program_bytes"))
    if 2.0 * shape.layer_parameters > room:
        return "too small"
    return _three(inference.decode_tokens_per_s(shape, context=context, p=edge))


def _shape(size: str) -> tuple[Shape, int]:
    if size.startswith("GPT-3 "):
        return shape_of(GPT3_SHAPES[size.removeprefix("GPT-3 ")]), 2048
    config = FAMILY[size].config
    shape = Shape(
        n_layers=config.n_layers,
        d_model=config.d_model,
        d_ffn=config.ffn_width,
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads,
        vocab=config.vocab_size,
    )
    return shape, config.max_seq_len


def _three(number: float) -> str:
    """Three digits, without a power of ten."""
    return f"{float(f'{number:.3g}'):,g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return (
        "".join("| " + " | ".join(row) + " |\n" for row in lines)
        .replace("| --- ", "|---")
        .replace("--- |", "---|")
    )


TABLES = {  # page -> section that holds the table -> the table
    "wafer_evidence.md": {
        "WSE-2": lambda: hardware_table(WSE2),
        "WSE-3, where it differs": lambda: hardware_table(WSE3, WSE2),
        "What the simulator charges": timing_table,
        "Functions": function_table,
    },
    "wafer_modes.md": {"Training": training_table, "Inference": inference_table},
}


def with_tables(page: str, text: str) -> str:
    """The page's text with the first table of every listed section written anew."""
    for section, table in TABLES[page].items():
        pattern = re.compile(
            rf"(^##+ {re.escape(section)}\n\n(?:[^|#\n].*\n|\n)*?)(?:^\|.*\n)+", re.MULTILINE
        )
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"{page} has no table under '{section}'")
        text = text[: found.end(1)] + table() + text[found.end() :]
    return text


if __name__ == "__main__":
    for name in TABLES:
        path = DOCS / name
        path.write_text(with_tables(name, path.read_text(encoding="utf-8")), encoding="utf-8")
