"""One job of `make tasks`: a data set's baselines, or one fine-tuning run with its scores."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import baselines
import numpy as np
from cases import POOL, Case, Record

from wafergpt import api
from wafergpt.checkpoints.files import write_atomic
from wafergpt.evaluation.tasks import perplexity
from wafergpt.finetuning.config import ExamplesConfig
from wafergpt.model.config import LoRAConfig
from wafergpt.runs.finetune import Plan

N_CANDIDATES = 20
N_SHOWN = 6
N_EVALUATIONS = 5  # of a run; each costs a third of the training of as many examples
BASELINES = "baselines"
PARAPHRASES = Path(__file__).parent / "paraphrases.json"
LORA = LoRAConfig(rank=16, alpha=32.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "pre-trained": {},
    "pre-trained, LoRA": {"lora": LORA},
    "random weights": {"random_weights": True},
}


@dataclass(frozen=True)
class Job:
    """`method` is a variant, or the baselines."""

    case: Case
    method: str
    seed: int
    base: Path
    base_sha256: str  # of its weights
    out: Path

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, as it is stored beside it."""
        variant = {name: str(value) for name, value in self.variant.items()}
        return {"case": asdict(self.case), "variant": variant, "base": self.base_sha256}

    @property
    def variant(self) -> dict[str, Any]:
        """Of the plan; adapters reach the embedding where there are entries to be learned."""
        found = VARIANTS.get(self.method, {})
        if "lora" in found and self.case.new_tokens:
            return {"lora": replace(LORA, targets=(*LORA.targets, "wte"))}
        return found

    def is_done(self) -> bool:
        """Whether there is a result of exactly these settings."""
        if not self.result.exists():
            return False
        return bool(json.loads(self.result.read_text(encoding="utf-8")).get("settings") == self.settings)

    @property
    def result(self) -> Path:
        """What it writes."""
        return self.out / "results" / f"{self.case.dataset}-{self.method}-{self.seed}.json"

    def records(self, split: str) -> list[Record]:
        """The data that `store_data` wrote."""
        text = file_of(self.case, self.out, split).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def data_of(case: Case, out: Path) -> Path:
    """The folder of the records that are used."""
    return out / "data" / case.dataset


def file_of(case: Case, out: Path, split: str) -> Path:
    """The pool is no split, so it lies apart."""
    return out / POOL / f"{case.dataset}.jsonl" if split == POOL else data_of(case, out) / f"{split}.jsonl"


def store_data(case: Case, out: Path, data: dict[str, list[Record]]) -> None:
    """A file for each split, as `wafergpt finetune --data` reads them."""
    for split, records in data.items():
        path = file_of(case, out, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def run(job: Job) -> str:
    """Do the job, write its result; a line that tells of it."""
    started = time.perf_counter()
    value = measure_baselines(job) if job.method == BASELINES else teach(job)
    value["settings"] = job.settings
    job.result.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(job.result, json.dumps(value, indent=1, ensure_ascii=False).encode())
    shown = value.get("scores", {}).get(job.case.measure)
    score = "" if shown is None else f"{job.case.measure} {shown:.3f}, "
    name = f"{job.case.dataset}, {job.method}, seed {job.seed}"
    return f"{name}: {score}{time.perf_counter() - started:.0f} s"


# -- simple methods


def measure_baselines(job: Job) -> dict[str, Any]:
    """Method -> measure -> value, and how many records there are."""
    train, test = job.records("train"), job.records("test")
    sizes = {split: len(job.records(split)) for split in ("train", "validation", "test")}
    return {"baselines": _baselines(job, train, test), "sizes": sizes}


def _baselines(job: Job, train: list[Record], test: list[Record]) -> dict[str, dict[str, float]]:
    if job.case.task == "classification":
        return baselines.classify(train, test)
    if job.case.task == "translation":
        return baselines.translate(train, test)
    if job.case.task == "qa":
        return baselines.answer(test)
    if job.case.task == "chat":
        return {
            "TF-IDF": {
                name: first_share(baselines.cosines(train, asked, candidates))
                for name, (asked, candidates) in question_sets(test, job.records(POOL)).items()
            }
        }
    pipe = api.pipeline("writing", job.base)
    return {"the base, before": {"perplexity": perplexity(pipe.task, pipe.model, test)}}


# -- fine-tuning


def teach(job: Job) -> dict[str, Any]:
    """One run: scores, time, samples."""
    case, folder = job.case, job.out / "runs" / job.result.stem.replace(", ", "-").replace(" ", "-")
    work = folder.with_name(f"{folder.name}.part")  # a finished run stays until this one is
    shutil.rmtree(work, ignore_errors=True)
    plan = Plan(
        base=job.base,
        data=data_of(case, job.out),
        examples=ExamplesConfig(task=case.task, settings=case.settings, new_tokens=case.new_tokens),
        epochs=case.epochs,
        batch_examples=case.batch_examples,
        seq_len=case.seq_len,
        seed=job.seed,
        **job.variant,
    )
    started = time.perf_counter()
    config, material = api.finetune_parts(plan)
    every = max(1, config.schedule.total_steps // N_EVALUATIONS)
    config = replace(config, eval_every=every, log_every=every)
    result = api.finetune(config, work, material=material, show=False)
    trained_s = time.perf_counter() - started
    pipe = api.pipeline(case.task, work)
    test = job.records("test")
    written = {name: getattr(case, name) for name in ("max_new_tokens", "frequency_penalty")}
    found = pipe.score(test, decoding=pipe.decoding({**written, "seed": 0}))
    scores = dict(found.scores)
    if case.task == "chat":
        scores |= rank(pipe, job.records("train"), question_sets(test, job.records(POOL)))
    answers = list(zip(found.records, found.answers, strict=True))
    shutil.rmtree(work / "training", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return {
        "variant": job.method,
        "seed": job.seed,
        "scores": scores,
        "n_learned": len(material.train.records),
        "n_test": found.n,
        "left_out": found.left_out,
        "steps": config.schedule.total_steps,
        "peak_lr": config.optim.peak_lr,
        "trained_s": trained_s,
        "seconds": time.perf_counter() - started,
        "held_out": str(result.held_out),
        "notices": list(material.notices),
        "samples": [
            {"record": record, "answer": answer.text, "confidence": answer.confidence}
            for record, answer in answers[:N_SHOWN]
        ],
        "bins": [[b.confidence, b.accuracy, b.n] for b in found.bins],
        "pairs": [[answer.text, pipe.task.target(record)] for record, answer in answers]
        if case.task == "classification"
        else [],
    }


# -- the help desk: which of twenty passages answers a question


def question_sets(test: list[Record], pool: list[Record]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Measure -> (questions, for each its own passage first and then random ones of the pool).

    The test's own questions, and those of `paraphrases.json`, in a customer's words; the file names each
    one's passage by the SHA-256 of its text.
    """
    passages = sorted({_answer(record) for record in pool})
    asked = [record["messages"][-2]["content"] for record in test]
    by_digest = {hashlib.sha256(text.encode()).hexdigest()[:12]: text for text in passages}
    written = json.loads(PARAPHRASES.read_text(encoding="utf-8"))
    return {
        "ranked_first": (asked, _candidates([_answer(record) for record in test], passages)),
        "paraphrased_first": (list(written.values()), _candidates([by_digest[d] for d in written], passages)),
    }


def _answer(record: Record) -> str:
    return str(record["messages"][-1]["content"])


def _candidates(right: list[str], passages: list[str]) -> list[list[str]]:
    draw = random.Random(0)
    found = []
    for text in right:
        others = draw.sample(passages, N_CANDIDATES)
        found.append([text, *[other for other in others if other != text][: N_CANDIDATES - 1]])
    return found


def first_share(scores: np.ndarray) -> float:
    """How often the first of each row is the highest: scores [n, candidates]."""
    return float(np.mean(scores[:, 0] > scores[:, 1:].max(1)))


def rank(
    pipe: api.Pipeline, train: list[Record], sets: dict[str, tuple[list[str], list[list[str]]]]
) -> dict[str, float]:
    """How often the right passage comes first.

    By all that `tasks.ranking` counts; by the question after the passage alone; with TF-IDF's scores added.
    """
    ranker = pipe.ranker([text for _, candidates in sets.values() for texts in candidates for text in texts])
    found = {}
    for name, (asked, candidates) in sets.items():
        gains = [ranker.gains(question, texts) for question, texts in zip(asked, candidates, strict=True)]
        ours = np.array([of.total for of in gains])
        both = standard(ours) + standard(baselines.cosines(train, asked, candidates))
        found |= {
            name: first_share(ours),
            f"{name}_by_context": first_share(np.array([of.asked for of in gains])),
            f"{name}_with_tfidf": first_share(both),
        }
    return found


def standard(scores: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and deviation 1."""
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)
