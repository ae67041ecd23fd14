"""Scores of the five tasks: three seeds of full fine-tuning, LoRA and random weights, simple baselines.

    python benchmarks/tasks --base runs/base --out runs/tasks [--only headlines ...] [--seeds 3]

Jobs run side by side, one on each core. Every result is a JSON file, so a run that was stopped goes on where
it was, unless the settings or the base are others. The table and pictures come last.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

from cases import CASES, Case, splits
from report import write_report
from teaching import BASELINES, VARIANTS, Job, store_data
from workers import run_jobs

from wafergpt.conversion import formats
from wafergpt.finetuning.material import weights_sha256


def jobs_of(cases: list[Case], base: Path, base_sha256: str, out: Path, n_seeds: int) -> list[Job]:
    """Seed after seed, so that a run that is stopped has something of everything; without what is done."""
    methods = [(BASELINES, 0, case) for case in cases]
    methods += [(name, seed, case) for seed in range(n_seeds) for case in cases for name in VARIANTS]
    jobs = [Job(case, method, seed, base, base_sha256, out) for method, seed, case in methods]
    left = [job for job in jobs if not job.is_done()]
    if n_stale := sum(job.result.exists() for job in left):
        print(f"{n_stale} results are of other settings or another base, and are measured anew")
    return left


def shrunk(case: Case) -> Case:
    """A toy of it, to see that it runs."""
    small = {"n_train": 60, "n_validation": 20, "n_test": 8, "epochs": 1.0, "max_new_tokens": 8}
    return dataclasses.replace(case, new_tokens=min(case.new_tokens, 50), **small)


def time_spent(out: Path, seconds: float) -> float:
    """This run's time and that of the runs that it goes on with, kept in OUT/seconds."""
    path = out / "seconds"
    total = seconds + (float(path.read_text()) if path.exists() else 0.0)
    path.write_text(f"{total:.1f}\n")
    return total


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("runs/base"))
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--toy", action="store_true", help="sixty examples each")
    given = parser.parse_args()
    started = time.perf_counter()
    base = formats.read(formats.locate(str(given.base))).model
    cases = [case for case in CASES if given.only is None or case.dataset in given.only]
    cases = [shrunk(case) if given.toy else case for case in cases]
    for case in cases:
        store_data(case, given.out, splits(case))
    jobs = jobs_of(cases, given.base, weights_sha256(base), given.out, given.seeds)
    print(f"{len(jobs)} jobs on {given.workers} cores", flush=True)
    run_jobs(jobs, given.workers)
    seconds = time_spent(given.out, time.perf_counter() - started)
    write_report(cases, given.out, n_params=base.config.n_params, seconds=seconds)


if __name__ == "__main__":
    main()
