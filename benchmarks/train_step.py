"""How fast is our training step beside a nanoGPT-style loop and the Transformers model?

Every engine lives in a process of its own, driven over pipes, and all take turns: A B C ... A B C. First
each is tried at several micro-batches, alone; then all run at their best ones, the peers as their users run
them and, in a second group, with our allocator settings (ours always has them: `training.fit` sets them).
Each engine of a group does the same number of timed steps after the same warm-up. The last line printed is
one JSON object.

    python benchmarks/train_step.py                # both shapes, about half an hour on two idle cores
    python benchmarks/train_step.py --quick        # a tiny model: does everything run?
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engines.build import OURS, PEAK, PEERS
from engines.shapes import SHAPES, Shape

AS_USED, ALLOCATOR = "as-used", "allocator"
# Least ratio to the best peer as used, with our allocator settings, and least share of the bf16 matmul peak.
BARS: dict[str, dict[str, float]] = {
    "small": {AS_USED: 1.8, ALLOCATOR: 1.4, "peak_share": 0.5},
    "111M": {AS_USED: 1.5, ALLOCATOR: 1.3},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is timed. `warmup` steps let the heap grow and the compiler finish."""

    sweep_warmup: int = 2
    sweep_steps: int = 2
    warmup: int = 4
    rounds: int = 4
    steps: int = 3  # a round
    peak_s: float = 0.5


QUICK = Plan(sweep_warmup=1, sweep_steps=2, warmup=2, rounds=2, steps=2, peak_s=0.1)


@dataclass
class Worker:
    """An engine in its own process. Use as a context manager."""

    engine: str
    shape: str
    micro_batch: int
    mode: str
    cache: Path  # of torch.compile, shared by the workers of one engine
    process: subprocess.Popen[str] = field(init=False)
    ready: dict[str, Any] = field(init=False)

    def __enter__(self) -> Worker:
        # Every engine chooses its own number of threads, and no user setting of malloc decides the outcome.
        own = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES")
        environment = {k: v for k, v in os.environ.items() if k not in own and not k.startswith("MALLOC_")}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.cache / self.engine)
        arguments = [self.engine, self.shape, str(self.micro_batch), self.mode]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engines.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent,
        )
        self.ready = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **command: float) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {self.engine} at micro-batch {self.micro_batch} stopped; its message is above")
        return dict(json.loads(line))


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def sweep(
    name: str, engines: list[str], plan: Plan, cache: Path
) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(engine, mode) -> micro-batch -> {tokens_per_s, peak_bytes}, each worker alone."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for engine in engines:
        for mode in (ALLOCATOR,) if engine in OURS else (AS_USED, ALLOCATOR):
            for micro_batch in SHAPES[name].micro_batches:
                with Worker(engine, name, micro_batch, mode, cache) as worker:
                    worker.ask(steps=plan.sweep_warmup)
                    answer = worker.ask(steps=plan.sweep_steps)
                rate = micro_batch * SHAPES[name].seq_len / statistics.median(answer["seconds"])
                at = {"tokens_per_s": rate, "peak_bytes": answer["peak_bytes"]}
                found.setdefault((engine, mode), {})[micro_batch] = at
                say(f"{name} sweep: {engine:14} {mode:9} B={micro_batch:<3} {rate:8.0f} tokens/s")
    return found


def best_of(by_micro_batch: dict[int, dict[str, float]]) -> int:
    """The micro-batch of the highest rate."""
    return max(by_micro_batch, key=lambda b: by_micro_batch[b]["tokens_per_s"])


def interleave(
    name: str, entries: list[tuple[str, str, int]], plan: Plan, cache: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Every (engine, mode, micro-batch) in turn, round after round: ({engine: result}, {type: peaks})."""
    shape = SHAPES[name]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(e, name, b, mode, cache)) for e, mode, b in entries]
        peak_worker = stack.enter_context(Worker(PEAK, name, 0, ALLOCATOR, cache))
        for worker in workers:
            worker.ask(steps=plan.warmup)
        results: dict[str, dict[str, Any]] = {
            w.engine: {
                "micro_batch": w.micro_batch,
                "allocator_taken": w.ready["allocator_taken"],
                "rounds": [],
            }
            for w in workers
        }
        peaks: dict[str, list[float]] = {}
        for number in range(plan.rounds):
            for dtype, flops in peak_worker.ask(duration_s=plan.peak_s).items():
                peaks.setdefault(dtype, []).append(flops)
            for worker in workers:
                answer = worker.ask(steps=plan.steps)
                result = results[worker.engine]
                rate = plan.steps * worker.micro_batch * shape.seq_len / sum(answer["seconds"])
                result["rounds"].append(rate)
                result["peak_bytes"] = answer["peak_bytes"]
                result["start_bytes"] = worker.ready["start_bytes"]
            rates = ", ".join(f"{e} {r['rounds'][-1]:.0f}" for e, r in results.items())
            say(f"{name} round {number + 1} of {plan.rounds}: {rates} tokens/s")
    for result in results.values():
        result["tokens_per_s"] = statistics.median(result["rounds"])
        result["spread"] = [min(result["rounds"]), max(result["rounds"])]
    return results, peaks


def same_size_memory(name: str, engine: str, mode: str, micro_batch: int, n_steps: int, cache: Path) -> int:
    """Peak resident bytes of `engine` at a peer's micro-batch and allocator after as many steps."""
    with Worker(engine, name, micro_batch, mode, cache) as worker:
        return int(worker.ask(steps=n_steps)["peak_bytes"])


def measure(name: str, ours: list[str], plan: Plan, cache: Path) -> dict[str, Any]:
    """Everything about one shape."""
    swept = sweep(name, [*ours, *PEERS], plan, cache)
    groups: dict[str, Any] = {}
    all_peaks: dict[str, list[float]] = {}
    for mode in (AS_USED, ALLOCATOR):
        entries = [(e, ALLOCATOR, best_of(swept[e, ALLOCATOR])) for e in ours]
        entries += [(e, mode, best_of(swept[e, mode])) for e in PEERS]
        results, peaks = interleave(name, entries, plan, cache)
        for dtype, values in peaks.items():
            all_peaks.setdefault(dtype, []).extend(values)
        best_peer = max(PEERS, key=lambda e: results[e]["tokens_per_s"])
        peer_rounds = results[best_peer]["rounds"]
        n_steps = plan.warmup + plan.rounds * plan.steps
        peer_batch = results[best_peer]["micro_batch"]
        groups[mode] = {
            "engines": results,
            "best_peer": best_peer,
            # Round by round, so that a slow minute of the machine hits both.
            "ratio": {
                e: statistics.median(a / b for a, b in zip(results[e]["rounds"], peer_rounds, strict=True))
                for e in ours
            },
            "memory": {
                "micro_batch": peer_batch,
                "peer_bytes": results[best_peer]["peak_bytes"],
                "ours_bytes": {e: same_size_memory(name, e, mode, peer_batch, n_steps, cache) for e in ours},
            },
        }
    found = {
        "groups": groups,
        "matmul_peak_flops": {dtype: statistics.median(values) for dtype, values in all_peaks.items()},
        "flops_per_token": SHAPES[name].flops_per_token,
        "sweep": [
            {"engine": e, "mode": m, "micro_batch": b, **at}
            for (e, m), by in swept.items()
            for b, at in by.items()
        ],
    }
    return found | judge(name, SHAPES[name], ours, found)


def judge(name: str, shape: Shape, ours: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Share of the matmul peak and which bars each of our engines meets."""
    groups, bars = found["groups"], BARS.get(name, {})
    peak = found["matmul_peak_flops"]["bf16"]
    shares, met = {}, {}
    for engine in ours:
        rate = statistics.median(r for g in groups.values() for r in g["engines"][engine]["rounds"])
        shares[engine] = rate * shape.flops_per_token / peak
        met[engine] = {
            f"ratio {mode} >= {bars[mode]}": groups[mode]["ratio"][engine] >= bars[mode]
            for mode in groups
            if mode in bars
        }
        if "peak_share" in bars:
            met[engine][f"share of bf16 matmul peak >= {bars['peak_share']}"] = (
                shares[engine] >= bars["peak_share"]
            )
        for mode, group in groups.items():
            memory = group["memory"]
            met[engine][f"memory {mode} <= the best peer's"] = (
                memory["ours_bytes"][engine] <= memory["peer_bytes"]
            )
    return {"share_of_bf16_matmul_peak": shares, "bars_met": met}


def table(name: str, found: dict[str, Any]) -> str:
    """What was measured, for a reader."""
    lines = [f"\n{name}: {found['flops_per_token'] / 1e6:.1f} MFLOP/token; measured matmul peak "]
    lines[0] += ", ".join(f"{k} {v / 1e9:.0f} G/s" for k, v in found["matmul_peak_flops"].items())
    for mode, group in found["groups"].items():
        lines.append(f"  peers {mode}:")
        best = group["engines"][group["best_peer"]]["tokens_per_s"]
        for engine, result in group["engines"].items():
            low, high = result["spread"]
            rate = f"{result['tokens_per_s']:8.0f} tokens/s ({low:.0f} to {high:.0f})"
            against = f"{result['tokens_per_s'] / best:5.2f} x {group['best_peer']}"
            peak = f"peak {result['peak_bytes'] / 2**30:.2f} GiB"
            lines.append(f"    {engine:14} B={result['micro_batch']:<3} {rate}, {against}, {peak}")
        memory = group["memory"]
        same_size = {group["best_peer"]: memory["peer_bytes"], **memory["ours_bytes"]}
        sizes = ", ".join(f"{e} {b / 2**30:.2f} GiB" for e, b in same_size.items())
        lines.append(f"    peak memory at B={memory['micro_batch']}: {sizes}")
    for engine, met in found["bars_met"].items():
        share = found["share_of_bf16_matmul_peak"][engine]
        lines.append(f"  {engine}: {share:.0%} of the bf16 matmul peak")
        lines += [f"    {'met    ' if is_met else 'NOT met'} {bar}" for bar, is_met in met.items()]
    return "\n".join(lines)


def hardware() -> dict[str, Any]:
    """What a figure depends on."""
    import torch

    from wafergpt.kernels.build import cpu_flags

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": model.group(1).strip() if model else platform.processor(),
        "n_cpus": len(os.sched_getaffinity(0)),
        "features": [flag for flag in wanted if flag in cpu_flags()],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average_at_start": os.getloadavg(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "int8"], default=["bf16", "int8"])
    parser.add_argument("--quick", action="store_true", help="a tiny model; the figures mean nothing")
    parser.add_argument(
        "--json-out", nargs="?", const="", help="write the JSON to this file, or to benchmarks/results"
    )
    arguments = parser.parse_args()
    from wafergpt.ops import dispatch

    ours = [f"ours-{p}" for p in arguments.precisions if p != "int8" or dispatch.int8_supported()]
    quick = arguments.quick or os.environ.get("WAFERGPT_SMOKE") == "1"
    plan, names = (QUICK, ["smoke"]) if quick else (Plan(), arguments.shapes)
    machine = hardware()
    with tempfile.TemporaryDirectory(prefix="train-step-") as cache:
        found = {name: measure(name, ours, plan, Path(cache)) for name in names}
    for name, shape in found.items():
        say(table(name, shape))
    result = {
        "benchmark": "train_step", "date": datetime.date.today().isoformat(),
        "quick": quick, "hardware": machine, "shapes": found,
    }  # fmt: skip
    line = json.dumps(result)
    if arguments.json_out is not None:
        label = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
        default = Path(__file__).parent / "results" / f"train_step_{label}_{result['date']}.json"
        target = Path(arguments.json_out) if arguments.json_out else default
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
