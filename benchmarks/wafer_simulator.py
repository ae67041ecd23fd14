"""How fast is the wafer machine, and how near are its cycles to the published ones?

The bar: SUMMA of 512^3 in float32 on 64 x 64 PEs (published row W256, measured on a WSE-2: 195,176 cycles) at
30 million PE-cycles per second or more on two cores, so in 27 s at most. The closed SDK simulator's logs show
0.14 to 0.28 million per second and thread. Cycles that were skipped because nothing could move do not count;
building, copying in and out are timed with the run. Then the other published rows of that program and the
collectives against the closed forms. The last line is JSON.

    python benchmarks/wafer_simulator.py            # about half a minute on two cores
    python benchmarks/wafer_simulator.py --all      # and 64 x 64 with tiles of 32: some five minutes
    python benchmarks/wafer_simulator.py --quick    # small: does everything run?
    python benchmarks/wafer_simulator.py --json-out # the JSON to benchmarks/results too
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.wafer.programs import gemm, trees
from wafergpt.wafer.programs.collectives import run_broadcast, run_reduce
from wafergpt.wafer.programs.tiles import CSL_LIBRARY

BAR_PE_CYCLES_PER_S = 30e6
BAR_SECONDS = 27.0  # of the first row
SDK_SIMULATOR_PE_CYCLES_PER_S = (0.14e6, 0.28e6)  # per thread, from its logs
# lingzhi227/MIMD_dataflow, real WSE-2 at 0.85 GHz, SDK 1.1.0: (edge, tile) -> cycles
PUBLISHED = {(64, 8): 195_176, (64, 4): 58_503, (2, 46): 600_061, (64, 32): 6_235_872}


def summa(edge: int, tile: int, threads: int) -> dict[str, Any]:
    """Run one row; figures of it."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((edge * tile, edge * tile)).astype(np.float32) for _ in range(2))
    start = time.monotonic()
    run = gemm.summa(a, b, edge, costs=CSL_LIBRARY, engine="native", threads=threads)
    seconds = time.monotonic() - start
    np.testing.assert_allclose(run.c, a @ b, atol=1e-3 * tile)
    simulated = run.launch.cycles - run.launch.skipped_cycles
    row = {
        "edge": edge,
        "tile": tile,
        "cycles": run.cycles,
        "published_cycles": PUBLISHED.get((edge, tile)),
        "skipped_cycles": run.launch.skipped_cycles,
        "seconds": round(seconds, 4),
        "pe_cycles_per_s": round(simulated * edge * edge / seconds),
    }
    published = row["published_cycles"]
    error = f", {run.cycles / published - 1:+.1%} of the published {published:,}" if published else ""
    print(
        f"SUMMA {edge} x {edge}, tile {tile}: {run.cycles:,} cycles{error}; {seconds:.1f} s, "
        f"{row['pe_cycles_per_s'] / 1e6:.1f} M PE-cycles/s, {row['skipped_cycles']:,} cycles skipped apart",
        flush=True,
    )
    return row


def collectives(pes: tuple[int, ...], wavelets: tuple[int, ...]) -> dict[str, float]:
    """Largest relative distance from the closed forms, by pattern."""
    worst: dict[str, float] = {}
    for n_pes in pes:
        for n in wavelets:
            values = np.random.default_rng(n).standard_normal((1, n_pes, n)).astype(np.float32)
            found = {"broadcast": run_broadcast(values).cycles / trees.broadcast_cycles(n_pes, n)}
            shapes = {"chain": trees.chain(n_pes), "tree": trees.binary(n_pes)}
            shapes |= {"two-phase": trees.two_phase(n_pes), "generated": trees.auto_generated(n_pes, n)}
            for name, tree in shapes.items():
                model = trees.chain_cycles(n_pes, n) if name == "chain" else trees.tree_cycles(tree, n)
                found[name] = run_reduce(values, tree).cycles / model
            for name, ratio in found.items():
                worst[name] = max(worst.get(name, 0.0), abs(ratio - 1))
    shown = ", ".join(f"{name} {error:.1%}" for name, error in worst.items())
    print(f"collectives, P in {pes}, B in {wavelets}: largest distance from the model: {shown}")
    return {name: round(error, 4) for name, error in worst.items()}


def main() -> None:
    """Run, print, end with one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--all", action="store_true", help="the longest published row too")
    parser.add_argument(
        "--json-out", nargs="?", const="", help="write the JSON to this file, or to benchmarks/results"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    rows = [(4, 4)] if options.quick else [row for row in PUBLISHED if row != (64, 32) or options.all]
    results = [summa(edge, tile, options.threads) for edge, tile in rows]
    pes, wavelets = ((4, 8), (1, 64)) if options.quick else ((4, 8, 16, 32, 64), (1024,))
    first, met = results[0], None
    if not options.quick:
        met = first["pe_cycles_per_s"] >= BAR_PE_CYCLES_PER_S and first["seconds"] <= BAR_SECONDS
        times = first["pe_cycles_per_s"] / options.threads / SDK_SIMULATOR_PE_CYCLES_PER_S[1]
        print(f"bar {'met' if met else 'MISSED'}; {times:.0f} times the SDK simulator's best log, per thread")
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    result = {
        "benchmark": "wafer_simulator",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": options.threads,
        "summa": results,
        "collectives_error": collectives(pes, wavelets),
        "bar_pe_cycles_per_s": BAR_PE_CYCLES_PER_S,
        "bar_seconds": BAR_SECONDS,
        "bar_met": met,
    }
    if options.json_out is not None:
        label = re.sub(r"[^a-z0-9]+", "-", " ".join(str(result["cpu"]).split()[:2]).lower()).strip("-")
        default = Path(__file__).parent / "results" / f"wafer_simulator_{label}_{result['date']}.json"
        target = Path(options.json_out) if options.json_out else default
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
