"""A base small enough for tests, and one data set a task: a few milliseconds a step."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from task_lab import byte_tokenizer

from wafergpt.checkpoints.native_model import write_run
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.finetuning.config import ExamplesConfig, FineTuneConfig
from wafergpt.finetuning.job import FineTuning
from wafergpt.finetuning.material import Material, gather
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.runs.finetune import DataShape, Plan, finetune
from wafergpt.training.config import Precision
from wafergpt.training.fit import FitOptions, FitResult, run

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=257, max_seq_len=64)
SILENT = FitOptions(console=None, plot=False, measure_peak=False)
WORDS = ["red", "blue", "cat", "dog", "sun"]


def stored(config: GPTConfig = CONFIG) -> StoredModel:
    """A base with random weights."""
    return StoredModel(config=config, arrays=GPT(config, seed=5).to_arrays(), tokenizer=byte_tokenizer())


def base(folder: Path) -> Path:
    """The same as a folder."""
    write_run(stored(), folder)
    return folder


def rows_of(task: str, n: int = 120) -> list[dict[str, Any]]:
    """Records that can be learned from."""
    draw = random.Random(1)
    found = []
    for number in range(n):
        words = draw.choices(WORDS, k=3)
        good = draw.random() < 0.5
        text = " ".join([*words, str(number), "good!" if good else "bad?"])
        if task == "classification":
            found.append({"text": text, "label": "yes" if good else "no"})
        elif task == "translation":
            found.append({"source": text[:12], "target": text[:12].upper()})
        elif task == "qa":
            found.append({"question": "Which?", "context": text[:20], "answers": words[1]})
        elif task == "chat":
            messages = [
                {"role": "user", "content": words[0]},
                {"role": "assistant", "content": words[0].upper()},
            ]
            found.append({"messages": [*messages, {"role": "user", "content": str(number)}, messages[1]]})
        else:
            found.append({"text": f"{text} " * 4})
    return found


def data(folder: Path, task: str = "classification", **changes: Any) -> Path:
    """A file of them."""
    path = folder / f"{task}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of(task, **changes))))
    return path


def parts(
    folder: Path, task: str = "classification", *, settings: dict[str, Any] | None = None, **changes: Any
) -> tuple[FineTuneConfig, Material]:
    """A run of a dozen steps; `changes` are those of the plan, then of the config."""
    file = folder / f"{task}.jsonl"
    examples = ExamplesConfig(task=task, settings=settings or {}, validation_fraction=0.2)
    ours = {f.name for f in dataclasses.fields(Plan)}
    plan = Plan(
        base=folder / "base",
        data=file if file.exists() else data(folder, task),
        examples=examples,
        **{"precision": Precision.FP32, "epochs": 3.0, "peak_lr": 1e-2}
        | {k: v for k, v in changes.items() if k in ours},
    )
    material = gather(stored(), plan.data, examples, CONFIG.max_seq_len, plan.seed)
    sizes = [row.n_positions for row in material.train.rows]
    shape = DataShape(n_examples=len(sizes), n_tokens=sum(sizes), longest=max(sizes))
    config = finetune(plan, CONFIG, shape)
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if k not in ours}), material


def teach(config: FineTuneConfig, material: Material, out: Path, **options: Any) -> FitResult:
    """The whole run, silently."""
    return run(config, lambda: FineTuning(config, out, material), options=SILENT, **options)
