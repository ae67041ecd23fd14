"""Jobs side by side, a process on each core."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from teaching import Job, run

from wafergpt.units import format_duration

JOBS_PER_PROCESS = 4  # then a new one takes its place, with its memory given back


def on_one_core(core: int) -> None:
    """A process's start; it ends with its parent, however that ends: no two write one run's folder."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_jobs(jobs: Sequence[Job], n_workers: int) -> None:
    """All of them, in order as cores become free; exits with how many failed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(n_workers))
    left, lock, started = iter(jobs), threading.Lock(), time.perf_counter()
    done: list[str] = []

    def work(core: int) -> None:
        with ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=on_one_core,
            initargs=(core,),
            max_tasks_per_child=JOBS_PER_PROCESS,
        ) as process:
            while True:
                with lock:
                    job = next(left, None)
                if job is None:
                    return
                try:
                    line = process.submit(run, job).result()
                except Exception as error:  # the others go on; the command fails at the end
                    line = f"FAILED {job.result.stem}: {error!r}"
                with lock:
                    done.append(line)
                    spent = format_duration(time.perf_counter() - started)
                    print(f"[{len(done)}/{len(jobs)}, {spent}] {line}", flush=True)

    lanes = [threading.Thread(target=work, args=(cores[i % len(cores)],)) for i in range(n_workers)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    if n_failed := sum(line.startswith("FAILED") for line in done):
        raise SystemExit(f"{n_failed} jobs failed; run the command again to repeat only them")
