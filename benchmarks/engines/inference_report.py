"""From measured rates to bars and tables."""

from __future__ import annotations

import statistics
from typing import Any

OURS = "ours"
TASKS = ("decode", "prefill", "batch16")

# (model, task, precision or None for each one's best) -> (ratio to the best peer, share of the limit or None)
BARS: dict[tuple[str, str, str | None], tuple[float, float | None]] = {
    ("111M", "decode", "int8"): (3.0, 0.75),
    ("111M", "decode", "int4"): (3.0, 0.60),
    ("111M", "decode", "bf16"): (1.5, 0.85),
    ("590M", "decode", "int8"): (1.8, 0.85),
    ("1.3B", "decode", "int8"): (1.5, 0.85),
    ("111M", "prefill", None): (1.7, 0.65),
    ("111M", "batch16", None): (2.5, None),
}


def shares(model: dict[str, Any], rates: dict[str, float], precision: str) -> dict[str, float]:
    """Decode: bytes read over the bandwidth; prefill: operations over the peaks of products and of tiles."""
    limits = model.get("limits") or {}
    if not limits:
        return {}
    found = {}
    if "decode" in rates:
        found["decode"] = (
            rates["decode"] * model["packed_bytes"][precision] / limits["read_bytes_per_s"][precision]
        )
    if "prefill" in rates:
        found["prefill"] = (
            rates["prefill"] * model["flops_per_prompt_token"] / limits["operations_per_s"][precision]
        )
        tiles = limits.get("tile_operations_per_s", {}).get(precision, 0.0)
        if tiles > 0.0:
            found["of AMX's tiles"] = rates["prefill"] * model["flops_per_prompt_token"] / tiles
    return found


def median_limits(probes: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """What the machine could do in the middle one of the rounds; {} where it was not measured."""
    first = probes[0] if probes else {}
    return {
        kind: {key: statistics.median(probe[kind][key] for probe in probes) for key in of_kind}
        for kind, of_kind in first.items()
    }


def best(
    engines: list[dict[str, Any]], task: str, *, ours: bool, precision: str | None
) -> dict[str, Any] | None:
    """The fastest entry of one side, in one precision or in any."""
    found = [
        e
        for e in engines
        if (e["engine"] == OURS) is ours and task in e["median"] and precision in (None, e["precision"])
    ]
    return max(found, key=lambda e: e["median"][task], default=None)


def judge(name: str, model: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar of this model: what was reached, and whether that is enough."""
    verdicts = []
    for (shape, task, precision), (ratio_bar, share_bar) in BARS.items():
        ours = best(model["engines"], task, ours=True, precision=precision)
        peer = best(model["engines"], task, ours=False, precision=precision)
        if shape != name or ours is None:
            continue
        share = ours.get("share", {}).get(task)
        ratio = None if peer is None else ours["median"][task] / peer["median"][task]
        verdicts.append(
            {
                "bar": f"{task}, {precision or 'each at its best'}, {shape}",
                "ours": f"{ours['precision']}",
                "peer": None if peer is None else f"{peer['engine']} {peer['precision']}",
                "ratio": ratio,
                "ratio_bar": ratio_bar,
                "share": share,
                "share_bar": share_bar,
                "met": bool(
                    ratio is not None
                    and ratio >= ratio_bar
                    and (share_bar is None or (share is not None and share >= share_bar))
                ),
            }
        )
    return verdicts


def _rate(entry: dict[str, Any], task: str) -> str:
    if task not in entry["median"]:
        return ""
    low, high = entry["spread"][task]
    return f"{entry['median'][task]:,.0f} ({low:,.0f}–{high:,.0f})"


def table(name: str, model: dict[str, Any]) -> str:
    """Markdown: every engine, then the bars, then who is missing and why."""
    lines = [
        f"**{name}**, tokens/s, median (least–most)",
        "",
        "| engine | weights | decode, 1 request | prefill 512 | 16 requests | share of the limit |",
        "|---|---|---|---|---|---|",
    ]
    for entry in model["engines"]:
        share = ", ".join(f"{task} {value:.0%}" for task, value in entry.get("share", {}).items())
        cells = [entry["engine"], entry["precision"], *(_rate(entry, task) for task in TASKS), share]
        lines.append(f"| {' | '.join(cells)} |")
    if model["bars"]:
        lines += ["", "| bar | against | ratio | share of the limit | met |", "|---|---|---|---|---|"]
    for bar in model["bars"]:
        ratio = "no peer" if bar["ratio"] is None else f"{bar['ratio']:.2f} (bar {bar['ratio_bar']:g})"
        share = "" if bar["share"] is None else f"{bar['share']:.0%}"
        share += "" if bar["share_bar"] is None else f" (bar {bar['share_bar']:.0%})"
        met = "yes" if bar["met"] else "**no**"
        lines.append(f"| {bar['bar']} | {bar['peer'] or ''} | {ratio} | {share} | {met} |")
    start = model.get("start")
    if start:
        lines += ["", "| fresh process | precision | to the first token | peak memory |", "|---|---|---|---|"]
        for entry in start:
            lines.append(
                f"| {entry['engine']} | {entry['precision']} | {entry['first_token_s']:.2f} s"
                f" | {entry['peak_bytes'] / 1e6:,.0f} MB |"
            )
    if model["failures"]:
        lines += ["", *(f"- {label}: {reason}" for label, reason in model["failures"].items())]
    return "\n".join(lines)
