"""The table of `make tasks`: means of the seeds with their spread, gains and misses, pictures.

`gather` reads the results into one plain value, `render` makes the page of it, so that a page can be made
anew from the file in `benchmarks/results`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case
from teaching import VARIANTS

from wafergpt.tasks.metrics import confusion
from wafergpt.training import metrics

# What the pre-trained model is held against, where the data set has it.
RIVALS = ("random weights", "TF-IDF + logistic regression", "copy of the source", "nearest training pair",
          "best sentence", "TF-IDF", "the base, before")  # fmt: skip
OURS, OUR_LORA = "pre-trained", "pre-trained, LoRA"
WAYS = {  # of ranking: what else is measured
    "by_context": "without the words it shares with the question",
    "with_tfidf": "together with TF-IDF",
}
EARLIER = "earlier"  # of a case that an older run measured: when and where
WANTED_DROP = 0.2  # of perplexity, after tuning to one author
COLOURS = {OURS: "tab:blue", OUR_LORA: "tab:orange", "random weights": "tab:gray"}


def gather(cases: Sequence[Case], out: Path, *, n_params: int, seconds: float) -> dict[str, Any]:
    """Every score of every seed, with the settings, sizes and machine that they belong to."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "n_params": n_params,
        "seconds": round(seconds),
        "cases": {case.dataset: found for case in cases if (found := _case(case, out))["methods"]},
    }


def _case(case: Case, out: Path) -> dict[str, Any]:
    methods: dict[str, list[dict[str, float]]] = {}
    sizes: dict[str, int] = {}
    trained_s: dict[str, list[float]] = {}
    about: dict[str, Any] = {}
    for path in sorted((out / "results").glob(f"{case.dataset}-*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if "baselines" in value:
            sizes = value["sizes"]
            methods |= {name: [_rounded(scores)] for name, scores in value["baselines"].items()}
        else:
            methods.setdefault(value["variant"], []).append(_rounded(value["scores"]))
            trained_s.setdefault(value["variant"], []).append(round(value["trained_s"], 1))
            about = {name: value[name] for name in ("steps", "n_learned", "n_test", "left_out")}
    return {
        "task": case.task, "measure": case.measure, "lower": case.lower, "epochs": case.epochs,
        "new_tokens": case.new_tokens,
        "sizes": sizes, **about, "trained_s": trained_s, "methods": methods,
    }  # fmt: skip


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in scores.items()}


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


# -- the page


def render(found: dict[str, Any]) -> str:
    """Markdown: who was measured on what, then each data set with its methods and verdicts."""
    mixed = any(EARLIER in case for case in found["cases"].values())
    of_what = "the data sets that give no other date" if mixed else "everything below"
    head = (
        f"Measured {found['date']} on {found['machine']}: a base of {found['n_params']:,} parameters,"
        f" {found['seconds'] / 60:.0f} minutes for {of_what}. Mean of the seeds, and after ± half"
        " the distance between the highest and the lowest of them."
    )
    return "\n\n".join([head, *(section(name, case) for name, case in found["cases"].items())])


def section(name: str, case: dict[str, Any]) -> str:
    """One data set: sizes, a row for each method, what is beaten and what is missed."""
    sizes = ", ".join(f"{n:,} {split}" for split, n in case["sizes"].items())
    n_left = case["sizes"]["train"] - case.get("n_learned", case["sizes"]["train"])
    if n_left:
        sizes += f"; left out of training as too long: {n_left:,}"
    if case.get("left_out"):
        sizes += "; left out of the test: " + ", ".join(f"{n:,} {why}" for why, n in case["left_out"].items())
    measures = list(dict.fromkeys(m for seeds in case["methods"].values() for m in seeds[0]))
    measures.sort(key=lambda m: m != case["measure"])
    steps = f"; epochs: {case['epochs']:g}, steps: {case['steps']:,}" if "steps" in case else ""
    if case.get("new_tokens"):
        steps += f"; new entries of the vocabulary: {case['new_tokens']:,}"
    earlier = [f"**Of an earlier run:** {case[EARLIER]}", ""] if EARLIER in case else []
    lines = [
        f"### {name}",
        "",
        *earlier,
        f"{case['task']}; examples: {sizes}{steps}",
        "",
        "| method | " + " | ".join(m.replace("_", " ") for m in measures) + " | training, s | seeds |",
        "|---|" + "---:|" * (len(measures) + 2),
    ]
    order = [*VARIANTS, *case["methods"]]
    for method in sorted(case["methods"], key=order.index):
        seeds = case["methods"][method]
        spent = case["trained_s"].get(method)
        lines.append(
            f"| {method} | "
            + " | ".join(_cell([s[m] for s in seeds if m in s]) for m in measures)
            + f" | {f'{np.mean(spent):.0f}' if spent else ''} | {len(seeds) if spent else ''} |"
        )
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(case))])


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    digits = 1 if max(values) >= 10 else 3
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.ptp(values) / 2:.{digits}f}"


def verdicts(case: dict[str, Any]) -> list[str]:
    """`beats` or `misses`, for each rival.

    LoRA's stands beside a miss; where TF-IDF ranks too, also without shared words, and with it.
    """
    measure, methods, lower = case["measure"], case["methods"], case["lower"]
    ours, by_lora = (_values(methods, method, measure) for method in (OURS, OUR_LORA))
    lines = []
    for rival in RIVALS:
        theirs = _values(methods, rival, measure)
        if not ours or not theirs:
            continue
        drop = WANTED_DROP if rival == "the base, before" else None
        lines.append(_verdict(f"{rival}: {measure}", ours, theirs, lower=lower, drop=drop))
        if by_lora and not lines[-1].startswith("beats"):
            lines.append(
                f"by LoRA: {_verdict(f'{rival}: {measure}', by_lora, theirs, lower=lower, drop=drop)}"
            )
        for suffix, how in WAYS.items() if rival == "TF-IDF" else ():
            if of_way := _values(methods, OURS, f"{measure}_{suffix}"):
                lines.append(f"{how}: {_verdict(f'{rival}: {measure}', of_way, theirs, lower=lower)}")
    return lines


def _values(methods: dict[str, list[dict[str, float]]], method: str, measure: str) -> list[float]:
    return [scores[measure] for scores in methods.get(method, []) if measure in scores]


def _verdict(
    against: str, ours: list[float], theirs: list[float], *, lower: bool, drop: float | None = None
) -> str:
    """By more than the larger spread (highest less lowest seed), or by the share `drop` of theirs."""
    gain = float(np.mean(ours) - np.mean(theirs)) * (-1 if lower else 1)
    needed = float(max(np.ptp(ours), np.ptp(theirs))) if drop is None else drop * float(np.mean(theirs))
    word = "beats" if gain > needed else "**misses**"
    return f"{word} {against} {gain:+.3f}, more than {needed:.3f} needed"


def write_report(cases: Sequence[Case], out: Path, *, n_params: int, seconds: float) -> Path:
    """`report.md`, `scores.json` and pictures in `out`."""
    found = gather(cases, out, n_params=n_params, seconds=seconds)
    (out / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shown = [case for case in cases if case.dataset in found["cases"]]
    pictures = [f"![{case.dataset}]({picture(case, out).name})" for case in shown]
    path = out / "report.md"
    text = "\n\n".join(["# Scores of the tasks", render(found), *pictures])
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    return path


# -- pictures


def picture(case: Case, out: Path) -> Path:
    """Learning curves of every run; for a classification, confusion matrix and reliability diagram too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = out / "results" / f"{case.dataset}-{OURS}-0.json"
    value = json.loads(first.read_text(encoding="utf-8")) if first.exists() else {}
    n = 3 if value.get("pairs") else 1
    figure = Figure(figsize=(5.2 * n, 4.2), dpi=80, layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    _curves(case, out, axes[0])
    if n == 3:
        _confusion(value["pairs"], axes[1])
        _reliability(value["bins"], axes[2])
    path = out / f"{case.dataset}.png"
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def _curves(case: Case, out: Path, axes: Any) -> None:
    for method, colour in COLOURS.items():
        pattern = f"{case.dataset}-{method.replace(', ', '-').replace(' ', '-')}-[0-9]/metrics.jsonl"
        for i, run in enumerate(sorted((out / "runs").glob(pattern))):
            lines = [line for line in metrics.read(run) if line.get("held_out_nats") is not None]
            axes.plot(
                [line["step"] for line in lines], [line["held_out_nats"] for line in lines],
                color=colour, marker=".", linewidth=1, label=method if i == 0 else None,
            )  # fmt: skip
    axes.set(xlabel="steps", ylabel="nats, validation examples", title=f"{case.dataset}: learning curves")
    axes.legend(fontsize=8)


def _confusion(pairs: list[list[str]], axes: Any) -> None:
    labels = sorted({label for pair in pairs for label in pair})
    counts = confusion([a for a, _ in pairs], [b for _, b in pairs], labels)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 12:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for i, j in np.ndindex(counts.shape):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, int(counts[i, j]), ha="center", va="center", color=colour)
    axes.set(xlabel="found", ylabel="wanted", title="confusion, seed 0")


def _reliability(bins: list[list[float]], axes: Any) -> None:
    kept = [(confidence, accuracy) for confidence, accuracy, n in bins if n]
    axes.plot([0, 1], [0, 1], color="tab:gray", linewidth=1)
    axes.plot(*zip(*kept, strict=True), marker="o", color="tab:blue")
    axes.set(xlabel="confidence", ylabel="accuracy", title="reliability, seed 0", xlim=(0, 1), ylim=(0, 1))
