"""Numbers that the closed forms use beyond the hardware's: fitted to calibration rows, derived, assumed."""

from __future__ import annotations

from wafergpt.wafer.arch import Evidence, Quantity


def _fitted(value: float, unit: str, meaning: str) -> Quantity:
    return Quantity(value, unit, Evidence.FITTED, f"effective; calibration rows: {meaning}")


def _assumed(value: float, unit: str, why: str) -> Quantity:
    return Quantity(value, unit, Evidence.ASSUMED, why)


def _derived(value: float, unit: str, why: str) -> Quantity:
    return Quantity(value, unit, Evidence.DERIVED, why)


PARAMETERS: dict[str, Quantity] = {
    # Training by weight streaming
    "training_share_of_peak": _fitted(0.237, "ratio", "dense work of a large batch"),
    "layer_delivery_s": _fitted(
        1.76e-3, "s", "latency of one layer's weights per iteration, before its bytes"
    ),
    "layer_exposed_s": _fitted(2.37e-3, "s", "per layer and iteration, hidden behind nothing"),
    "head_cost_factor": _fitted(1.93, "ratio", "vocabulary head and loss against a layer's FLOPs"),
    "streamed_bytes_per_parameter": _derived(
        12.0, "B", "32 bit in for the forward pass, in for the backward, and out as gradient: white paper"
    ),
    "loss_per_doubling": _assumed(
        0.01, "ratio", "rate lost per doubling of systems; published: within 9 % of linear up to 16"
    ),
    # Inference programs on a square of PEs (WaferLLM's)
    "map_cycles": _fitted(4.2, "cycle", "issue of one vector operation of a mapped loop"),
    "column_setup_cycles": _fitted(16.2, "cycle", "descriptors of one loop over a tile's column"),
    "collective_call_cycles": _fitted(141.0, "cycle", "one all-reduce, beside what the fabric takes"),
    "division_cycles": _fitted(129.0, "cycle", "a half-precision division or square root, in software"),
    "shift_step_cycles": _assumed(100.0, "cycle", "four tasks and four descriptors per shift of two tiles"),
    "program_bytes": _assumed(4096.0, "B", "code, stack and vectors of an inference program per PE"),
    # SUMMA with collectives_2d, float32
    "summa_vector_cycles": _fitted(28.0, "cycle", "loop, index and descriptor of one vector operation"),
    "summa_step_cycles": _fitted(320.0, "cycle", "two broadcasts and three tasks of one step"),
    "summa_mac_cycles": _derived(
        2.0, "cycle", "float32 multiply-accumulate, three operands in SRAM: logs (MIMD)"
    ),
    "bank_conflict_cycles": _derived(
        1.0,
        "cycle",
        "per element when both operands' columns start in banks that collide modulo 4: SDK, MIMD",
    ),
    # One PE's matrix-vector product
    "matvec_column_cycles": _derived(1.0, "cycle", "issue of a column's vector operation; whole cycles"),
    "matvec_call_cycles": _fitted(42.8, "cycle", "one call: three descriptors and the loop"),
    # Captured operators
    "weight_products_per_layer": _derived(
        8.0, "product", "four matrices of a GPT-2 layer, forward and backward: shares the layer latencies"
    ),
    "function_cycles": _assumed(16.0, "cycle", "per element of exp, tanh, root or division, in software"),
    # Layer-pipelined execution
    "pipelined_macs_per_cycle": _derived(
        2.3, "MAC/cycle", "kernels sustain 2.2 to 2.45: compile report, DABench"
    ),
    "pipelined_balance": _derived(
        0.68, "ratio", "slowest kernel against the mean: GPT-2 small's compile report"
    ),
    "pipelined_active_share": _derived(0.92, "ratio", "282,358 of 307,840 PEs: same report"),
}

# Rate of a release against R2.0.3 and later. Published: the same GPT-J run sped up by more than half from
# R1.7 to R2.0.3 (ALCF logs); the releases between are interpolated.
RELEASE_EFFICIENCY: dict[str, Quantity] = {
    "1.6": _assumed(0.60, "ratio", "below R1.7"),
    "1.7": _assumed(0.645, "ratio", "1 / 1.55: 'more than half' between R1.7 and R2.0.3"),
    "1.8": _assumed(0.75, "ratio", "interpolated"),
    "1.9": _assumed(0.87, "ratio", "interpolated"),
    "2.0": Quantity(1.0, "ratio", Evidence.DERIVED, "the release of the calibration row"),
}


def release_efficiency(release: str | None) -> float:
    """Rate of a software release against R2.0.3; an unknown, unnamed or later one counts as 1."""
    name = (release or "").strip().upper().removeprefix("R")
    for prefix, quantity in RELEASE_EFFICIENCY.items():
        if name == prefix or name.startswith(prefix + "."):
            return quantity.value
    return 1.0


def value(name: str, parameters: dict[str, Quantity] | None = None) -> float:
    """The parameter `name`."""
    return (PARAMETERS if parameters is None else parameters)[name].value
