"""Jobs side by side, one process on each core."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from teaching import Job, run

from wafergpt.units import format_duration


def on_one_core(cores: multiprocessing.Queue) -> None:
    """A worker's start: it takes a core of its own."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)


def run_jobs(jobs: Sequence[Job], n_workers: int) -> None:
    """All of them; raises what a job raised once the others are done."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(n_workers))
    for i in range(n_workers):
        cores.put(usable[i % len(usable)])
    started, failed = time.perf_counter(), []
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=on_one_core, initargs=(cores,)
    ) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        for n, future in enumerate(as_completed(futures), 1):
            if future.exception() is not None:
                failed.append(future.exception())
            line = future.result() if future.exception() is None else f"FAILED: {future.exception()!r}"
            print(f"[{n}/{len(jobs)}, {format_duration(time.perf_counter() - started)}] {line}", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} jobs failed; run the command again to repeat only them")
