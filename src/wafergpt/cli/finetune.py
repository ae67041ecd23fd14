"""`wafergpt finetune`: teach a pre-trained model a task, or go on with the run found in --out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from wafergpt.cli import finetune_options as options
from wafergpt.config import require

if TYPE_CHECKING:
    from pathlib import Path

VERB_OF = {
    "classification": "classify", "translation": "translate", "qa": "answer", "chat": "chat",
    "writing": "write",
}  # fmt: skip


def finetune(
    task: options.Task = None,
    base: options.Base = None,
    data: options.Data = None,
    out: options.Out = ...,  # type: ignore[assignment]
    validation: options.Validation = None,
    test: options.Test = None,
    columns: options.Columns = None,
    setting: options.Setting = None,
    epochs: options.Epochs = 3.0,
    batch: options.Batch = 32,
    lr: options.LearningRate = None,
    max_tokens: options.MaxTokens = None,
    new_tokens: options.NewTokens = 0,
    lora: options.LoRA = None,
    alpha: options.Alpha = None,
    lora_target: options.LoRATarget = None,
    balanced: options.Balanced = False,
    precision: options.Precision = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    set_: options.Set = None,
    resume: options.Resume = False,
    tensorboard: options.TensorBoard = False,
    dry_run: options.DryRun = False,
) -> None:
    """Teach --base the --task that the examples in --data show, into --out."""
    from wafergpt import api
    from wafergpt.config import dump, from_dict
    from wafergpt.runs.finetune import Plan

    missing = [
        name for name, value in (("--task", task), ("--base", base), ("--data", data)) if value is None
    ]
    require(resume or not missing, f"{' and '.join(missing)} must be given (or --resume)")
    told: dict[str, Any] = {
        "base": base, "data": data, "epochs": epochs, "batch_examples": batch, "peak_lr": lr,
        "seq_len": max_tokens, "precision": precision, "random_weights": random_weights, "seed": seed,
        "class_weights": "balanced" if balanced else "equal",
        "lora": options.lora_of(lora, alpha, lora_target),
        "examples": {
            "task": task, "settings": options.settings_of(setting or ()), "validation": validation,
            "columns": dict(options.pairs_of("--columns", columns or ())), "new_tokens": new_tokens,
        },
    }  # fmt: skip
    if resume:
        options.check_resume(told)
    plan = api.stored_finetune(out) if resume else from_dict(Plan, told)
    config, material = api.finetune_parts(plan, set_ or ())
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if is_first:
        leaks = api.test_leaks(material, test, config.examples.columns) if test else []
        print(dump(config), *leaks, sep="\n" if leaks else "", end="\n" if leaks else "", flush=True)
    if dry_run:
        print(*material.notices, sep="\n")
        return
    result = api.finetune(config, out, material=material, resume=resume, tensorboard=tensorboard)
    if is_first:
        _report(result, material.task.name, test, config.examples.columns)


def _report(result: Any, task: str, test: Path | None, columns: dict[str, str]) -> None:
    from wafergpt import api

    if result.held_out is not None:
        print(f"held out, at the last step: {result.held_out}")
    if test is not None:
        scores = api.score(task, result.folder, test, columns=columns)
        print(f"scores on {scores.n:,} examples of {test}:", *scores.lines(), sep="\n")
    print(f"next: wafergpt {VERB_OF[task]} --model {result.folder}")
