"""How fast does our engine generate beside the engines that a user could pick instead?

Every engine lives in a process and an environment of its own and all take turns: A B C ... A B C, with the
same random weights, the same prompts and the same number of threads. Reported: medians and spread, and the
ratio to the best peer of the same rounds. A peer that cannot be installed or run is named with its reason.
The last line printed is one JSON object.

    python benchmarks/inference.py                 # what is measured, see `docs/explanation/performance.md`
    python benchmarks/inference.py --quick         # a tiny model without peers: does everything run?
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engines.inference_prepare import Entry, Limits, Prepared, limits, prepare
from engines.inference_quality import lines, quality
from engines.inference_report import judge, median_limits, shares, table
from engines.inference_tasks import QUICK, TASKS, Task, measure_once
from engines.workers import Failed, Worker

OURS = "ours"
MODELS = ("111M", "256M", "590M", "1.3B")
N_SLOTS = 16  # requests at once, at most
PRECISIONS = ("f32", "bf16", "int8", "int4")
OF_LARGE = ("int8", "int4")  # above 111M: with every engine in float32 1.3B would take 26 GB at once


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def interleave(
    entries: list[Entry], tasks: dict[str, Task], rounds: int, n_threads: int, probe: Callable[[], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every engine in turn, and `probe`, round after round: (results, reasons of failures)."""
    failures: dict[str, str] = {}
    found: dict[Entry, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[Entry, Worker] = {}
        for entry in entries:
            try:
                workers[entry] = stack.enter_context(Worker(entry.command(n_threads, N_SLOTS), entry.engine))
            except Failed as error:
                failures[entry.label] = str(error)
                continue
            ready = workers[entry].ready
            rates = {name: [] for name in tasks}  # type: dict[str, list[float]]
            found[entry] = {"engine": entry.engine, "precision": entry.precision, "rounds": rates}
            found[entry] |= {"version": ready["version"], "load_s": ready["load_s"]}
        for number in range(-1, rounds):  # the first round warms up
            for entry, worker in list(workers.items()):
                for name, task in tasks.items():
                    try:
                        rate = measure_once(worker, task)
                    except Failed as error:
                        failures[entry.label] = str(error)
                        del workers[entry]
                        found.pop(entry)
                        break
                    if number >= 0:
                        found[entry]["rounds"][name].append(rate)
            if number >= 0:
                probe()
            say(f"round {number + 1} of {rounds}")
    for result in found.values():
        result["median"] = {name: statistics.median(r) for name, r in result["rounds"].items() if r}
        result["spread"] = {name: [min(r), max(r)] for name, r in result["rounds"].items() if r}
    return list(found.values()), failures


def start(entry: Entry, n_threads: int) -> dict[str, Any]:
    """A fresh process: seconds from its start to the first token after 128, and the most memory it had."""
    prompts = TASKS["decode"].prompts()
    began = time.perf_counter()
    with Worker(entry.command(n_threads, 1), entry.engine) as worker:
        worker.ask(prompts=prompts, n_new=1)
        first_token_s = time.perf_counter() - began
        peak = worker.ask(prompts=prompts, n_new=128)["peak_bytes"]
    return {
        "engine": entry.engine, "precision": entry.precision,
        "first_token_s": first_token_s, "peak_bytes": peak,
    }  # fmt: skip


def flops_per_prompt_token(model: str) -> int:
    """Of the layers' matrices and of attention over half of 512 tokens; the head, run once, is left out."""
    from wafergpt.model.family import FAMILY

    if model not in FAMILY:
        return 0
    config = FAMILY[model].config
    return 24 * config.n_layers * config.d_model**2 + 2 * 512 * config.n_layers * config.d_model


def _probe(found: list[Limits], packed_bytes: dict[str, int], cache: Path, n_threads: int) -> None:
    found.append(limits(packed_bytes, cache, n_threads))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["111M"])
    parser.add_argument(
        "--peers", nargs="*", default=["transformers", "ctranslate2", "llama.cpp", "openvino", "vllm"]
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        help="default: all of 111M, int8 and int4 of larger ones",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "wafergpt" / "benchmark-inference"
    )
    parser.add_argument(
        "--quality", action="store_true", help="also what each precision costs on two trained models"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model without peers; figures mean nothing"
    )
    parser.add_argument(
        "--json-out", nargs="?", const="", help="write the JSON to this file, or to benchmarks/results"
    )
    return parser


def main() -> None:
    """Parse, measure, print."""
    options = _parser().parse_args()
    from train_step import hardware

    quick = options.quick or os.environ.get("WAFERGPT_SMOKE") == "1"
    models, peers, rounds = (["tiny"], [], 1) if quick else (options.models, options.peers, options.rounds)
    machine, shapes = hardware(), {}
    for model in models:
        precisions = options.precisions or (PRECISIONS if model in ("111M", "tiny") else OF_LARGE)
        prepared: Prepared = prepare(model, peers, list(precisions), options.cache, say)
        tasks = QUICK if quick else {n: t for n, t in TASKS.items() if model == "111M" or n == "decode"}
        probes: list[Limits] = []
        probe = functools.partial(_probe, probes, prepared.packed_bytes, options.cache, options.threads)
        results, failures = interleave(prepared.entries, tasks, rounds, options.threads, probe)
        found = shapes[model] = {
            "engines": results, "failures": prepared.failures | failures,
            "packed_bytes": prepared.packed_bytes,
            "flops_per_prompt_token": flops_per_prompt_token(model),
            "limits": median_limits(probes),
        }  # fmt: skip
        for entry in results:
            if entry["engine"] == OURS:
                entry["share"] = shares(found, entry["median"], entry["precision"])
        if model == "111M":
            found["start"] = []
            for entry in (e for e in prepared.entries if e.label not in failures):
                try:
                    found["start"].append(start(entry, options.threads))
                except Failed as error:
                    found["failures"][f"{entry.label}, fresh process"] = str(error)
        found["bars"] = judge(model, found)
        say(table(model, found))
    trained = quality(options.cache, ["bf16", "int8", "int4"]) if options.quality else {}
    if trained:
        say("\n".join(lines(trained)))
    result = {
        "benchmark": "inference", "date": datetime.date.today().isoformat(), "quick": quick,
        "hardware": machine, "threads": options.threads, "models": shapes, "quality": trained,
    }  # fmt: skip
    if options.json_out is not None:
        label = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
        default = Path(__file__).parent / "results" / f"inference_{label}_{result['date']}.json"
        target = Path(options.json_out) if options.json_out else default
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
