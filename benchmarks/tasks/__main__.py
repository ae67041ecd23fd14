"""Scores of the five tasks: three seeds of full fine-tuning, LoRA and random weights, simple baselines.

    python benchmarks/tasks --base runs/base --out runs/tasks [--only headlines ...] [--seeds 3]

Every result is a JSON file, so a run that was stopped goes on where it was. The table and pictures come last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import baselines
import numpy as np
from cases import CASES, Case, Record, splits
from report import write_report

from wafergpt import api
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.conversion import formats
from wafergpt.evaluation.tasks import perplexity
from wafergpt.finetuning.config import ExamplesConfig
from wafergpt.model.config import LoRAConfig
from wafergpt.runs.finetune import Plan

N_CANDIDATES = 20
VARIANTS: dict[str, dict[str, Any]] = {
    "pre-trained": {},
    "pre-trained, LoRA": {"lora": LoRAConfig(rank=16, alpha=32.0)},
    "random weights": {"random_weights": True},
}


def candidates_of(test: list[Record], seed: int) -> list[list[str]]:
    """For each conversation its own last answer first, then random ones of others."""
    draw = random.Random(seed)
    texts = [record["messages"][-1]["content"] for record in test]
    n = min(N_CANDIDATES, len(set(texts))) - 1
    return [[text, *draw.sample(sorted(set(texts) - {text}), n)] for text in texts]


def ranked_first(pipe: api.Pipeline, test: list[Record], candidates: list[list[str]]) -> float:
    """How often the right answer gains most from its question: nats with the question less nats without."""
    tokenizer, window = pipe.model.tokenizer, pipe.model.window
    bare = [tokenizer.end_of_text_id, *tokenizer.encode("Assistant:")]
    hits = []
    for record, texts in zip(test, candidates, strict=True):
        prompt = pipe.task.prompt(_messages(record)[:-1], tokenizer)  # type: ignore[attr-defined]
        told = [tokenizer.encode(f" {text.strip()}")[: window - len(prompt)] for text in texts]
        rows = [((*start, *ids), len(start)) for ids in told for start in (tuple(prompt), tuple(bare))]
        nats = [sum(found) for found in pipe.model.log_probabilities(rows)]
        gains = np.array(nats[::2]) - np.array(nats[1::2])
        hits.append(gains[0] > gains[1:].max())
    return float(np.mean(hits))


def _messages(record: Record) -> Any:
    from wafergpt.tasks.chat import messages_of

    return messages_of(record)


def baselines_of(case: Case, data: dict[str, list[Record]], base: Path) -> dict[str, dict[str, float]]:
    """Method -> measure -> value."""
    train, test = data["train"], data["test"]
    if case.task == "classification":
        return baselines.classify(train, test)
    if case.task == "translation":
        return baselines.translate(train, test)
    if case.task == "qa":
        return baselines.answer(test)
    if case.task == "chat":
        asked = [record["messages"][-2]["content"] for record in test]
        return baselines.rank(train, asked, candidates_of(test, 0))
    pipe = api.pipeline("writing", base)
    return {"the base, before": {"perplexity": perplexity(pipe.task, pipe.model, test)}}


def teach(case: Case, data: dict[str, list[Record]], base: Path, out: Path, variant: str, seed: int) -> dict:
    """One run: scores, time, samples."""
    folder = out / "runs" / f"{case.dataset}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    files = folder.parent / f"{case.dataset}-data"
    for split in ("train", "validation"):
        files.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in data[split])
        (files / f"{split}.jsonl").write_text(text, encoding="utf-8")
    plan = Plan(
        base=base,
        data=files,
        examples=ExamplesConfig(task=case.task, settings=case.settings),
        epochs=case.epochs,
        seq_len=case.seq_len,
        seed=seed,
        **VARIANTS[variant],
    )
    started = time.perf_counter()
    config, material = api.finetune_parts(plan)
    result = api.finetune(config, folder, material=material)
    trained_s = time.perf_counter() - started
    pipe = api.pipeline(case.task, folder)
    test = data["test"]
    found = pipe.score(test)
    scores = dict(found.scores)
    if case.task == "chat":
        scores["ranked_first"] = ranked_first(pipe, test, candidates_of(test, 0))
    shown = [
        {"record": record, "answer": answer.text, "confidence": answer.confidence}
        for record, answer in list(zip(found.records, found.answers, strict=True))[:5]
    ]
    shutil.rmtree(folder / "training", ignore_errors=True)
    return {
        "scores": scores,
        "n_test": found.n,
        "left_out": found.left_out,
        "trained_s": trained_s,
        "seconds": time.perf_counter() - started,
        "held_out": str(result.held_out),
        "notices": list(material.notices),
        "samples": shown,
        "pairs": [[a.text, pipe.task.target(r)] for r, a in zip(found.records, found.answers, strict=True)]
        if case.task == "classification"
        else [],
    }


def run_case(case: Case, base: Path, out: Path, n_seeds: int) -> None:
    """Every baseline and variant that has no result yet."""
    data = splits(case)
    path = out / "results" / f"{case.dataset}-baselines.json"
    if not path.exists():
        write(
            path, {"baselines": baselines_of(case, data, base), "sizes": {k: len(v) for k, v in data.items()}}
        )
    for seed in range(n_seeds):
        for variant in VARIANTS:
            path = out / "results" / f"{case.dataset}-{variant}-{seed}.json"
            if not path.exists():
                print(f"== {case.dataset}, {variant}, seed {seed}", flush=True)
                write(path, {"variant": variant, "seed": seed, **teach(case, data, base, out, variant, seed)})


def write(path: Path, value: dict[str, Any]) -> None:
    """JSON, made whole before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.rename(path)


def shrunk(case: Case) -> Case:
    """A toy of it, to see that it runs."""
    return dataclasses.replace(case, n_train=60, n_validation=20, n_test=8, epochs=1.0)


def base_of(path: Path) -> StoredModel:
    """Read once, so that a missing base is told at once."""
    return formats.read(formats.locate(str(path))).model


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("runs/base"))
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="sixty examples each")
    given = parser.parse_args()
    n_params = base_of(given.base).config.n_params
    for case in CASES:
        if given.only is None or case.dataset in given.only:
            run_case(shrunk(case) if given.toy else case, given.base, given.out, given.seeds)
    write_report(CASES, given.out, n_params=n_params)


if __name__ == "__main__":
    main()
