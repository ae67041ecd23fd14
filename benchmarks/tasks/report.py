"""The table of `make tasks`: means of the seeds with their spread, gains and misses, pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case

from wafergpt.tasks.metrics import confusion
from wafergpt.training import metrics

# What the issue asks of each data set: the pre-trained model above these, by more than the spread.
RIVALS = ("random weights", "TF-IDF + logistic regression", "copy of the source", "nearest training pair",
          "best sentence", "TF-IDF", "the base, before")  # fmt: skip
WANTED_DROP = 0.2  # of perplexity, after tuning to one author


def results_of(case: Case, out: Path) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """(method -> the scores of each seed, what the baselines' file says)."""
    found: dict[str, list[dict[str, float]]] = {}
    about: dict[str, Any] = {}
    for path in sorted((out / "results").glob(f"{case.dataset}-*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if "baselines" in value:
            about = value
            found |= {name: [scores] for name, scores in value["baselines"].items()}
        else:
            found.setdefault(value["variant"], []).append(value["scores"])
    return found, about


def verdict(case: Case, found: dict[str, list[dict[str, float]]]) -> list[str]:
    """`beats` or `misses`, for each rival: by more than the larger spread (highest less lowest seed)."""
    ours = [scores[case.measure] for scores in found.get("pre-trained", [])]
    lines = []
    for rival in RIVALS:
        theirs = [s[case.measure] for s in found.get(rival, []) if case.measure in s]
        if not ours or not theirs:
            continue
        gain = float(np.mean(ours) - np.mean(theirs)) * (-1 if case.lower else 1)
        spread = max(np.ptp(ours), np.ptp(theirs))
        needed = WANTED_DROP * float(np.mean(theirs)) if rival == "the base, before" else spread
        word = "beats" if gain > needed else "misses"
        lines.append(f"{word} {rival}: {case.measure} {gain:+.3f}, needed {needed:.3f}")
    return lines


def table(cases: Sequence[Case], out: Path) -> str:
    """Markdown: a row for each data set and method."""
    lines = ["| data set | method | measures: mean (spread of seeds) | seeds |", "|---|---|---|---|"]
    for case in cases:
        for method, seeds in results_of(case, out)[0].items():
            names = [case.measure, *(name for name in seeds[0] if name != case.measure)]
            cells = [
                f"{name} {np.mean([s[name] for s in seeds]):.3f} ({np.ptp([s[name] for s in seeds]):.3f})"
                for name in names
                if all(name in s for s in seeds)
            ]
            lines.append(f"| {case.dataset} | {method} | {', '.join(cells)} | {len(seeds)} |")
    return "\n".join(lines)


def write_report(cases: Sequence[Case], out: Path, *, n_params: int) -> Path:
    """`report.md` and its pictures in `out`."""
    cases = [case for case in cases if results_of(case, out)[0]]
    parts = [
        "# Scores of the tasks",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} processors;"
        f" a base of {n_params:,} parameters.",
        table(cases, out),
        "## Gains and misses",
        *(
            "\n".join(
                [
                    f"**{case.dataset}**",
                    "",
                    *(f"- {line}" for line in verdict(case, results_of(case, out)[0])),
                ]
            )
            for case in cases
        ),
        *(f"![{case.dataset}]({picture(case, out).name})" for case in cases),
    ]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return path


def picture(case: Case, out: Path) -> Path:
    """Learning curves of every run, and the confusion matrix of a classification."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"random": "tab:gray", "pre": "tab:blue", "lora": "tab:orange"}
    for run in sorted((out / "runs").glob(f"{case.dataset}-*/metrics.jsonl")):
        lines = [line for line in metrics.read(run) if line.get("held_out_nats") is not None]
        kind = next(k for k in ("LoRA", "random", "pre") if k in run.parent.name)
        left.plot(
            [line["step"] for line in lines], [line["held_out_nats"] for line in lines],
            color=colours[kind.lower()], label=run.parent.name.removeprefix(f"{case.dataset}-"),
        )  # fmt: skip
    left.set(xlabel="steps", ylabel="held-out nats", title=case.dataset)
    left.legend(fontsize=6)
    _confusion(case, out, right)
    path = out / f"{case.dataset}.png"
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def _confusion(case: Case, out: Path, axes: Any) -> None:
    path = out / "results" / f"{case.dataset}-pre-trained-0.json"
    pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"] if path.exists() else []
    if not pairs:
        axes.axis("off")
        return
    labels = sorted({label for pair in pairs for label in pair})
    counts = confusion([a for a, _ in pairs], [b for _, b in pairs], labels)
    axes.imshow(counts / np.maximum(1, counts.sum(1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 12:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for i, j in np.ndindex(counts.shape):
            axes.text(j, i, int(counts[i, j]), ha="center", va="center")
    axes.set(xlabel="found", ylabel="wanted", title="confusion, seed 0")
