"""How fast and in how much memory is a checkpoint loaded, beside Transformers; does converting stay small?

Loading: one 111M float32 safetensors file, read in turn by `GPT.from_pretrained` and by Transformers'
`from_pretrained`, each time in a new process. Time is taken without and with the imports; memory is the peak
of the resident set above what it was after the imports, and in all. Both leave arrays in the mapped file
until they are used, so one forward pass of eight tokens is measured too. Ours has looked at every value
by then (NaN and infinity are refused). Converting: a 1.3B float32 folder is read and
written again; the peak is that of the whole process. The last line is JSON.

    python benchmarks/load.py                   # about four minutes on two cores, 11 GB of disk
    python benchmarks/load.py --quick           # small: does everything run?
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.huggingface.folder import write_folder
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.model import family
from wafergpt.model.config import GPTConfig
from wafergpt.units import format_bytes

BARS = {"time_ratio": 1.0, "peak_ratio": 0.5, "conversion_peak_to_file": 1.2}
ROUNDS = 7
QUICK = GPTConfig(d_model=128, n_layers=3, n_heads=2, vocab_size=4096, max_seq_len=128)
PROCESS = """
import sys, time, json
{imports}
import torch
def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, start = memory("VmRSS"), time.monotonic()
{load}
loaded = time.monotonic()
peak = memory("VmHWM")
with torch.no_grad():
    model(torch.arange(8)[None])
answered = time.monotonic()
print(json.dumps(dict(
    load_s=loaded - start, with_import_s=loaded - float(sys.argv[2]), first_logits_s=answered - start,
    peak_bytes=peak - before, absolute_peak_bytes=peak, peak_after_logits_bytes=memory("VmHWM") - before,
)))
"""
WAYS = {
    "wafergpt": PROCESS.format(
        imports="from wafergpt.model.gpt import GPT", load="model = GPT.from_pretrained(sys.argv[1]).eval()"
    ),
    "transformers": PROCESS.format(
        imports="from transformers import GPT2LMHeadModel",
        load="model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()",
    ),
}
CONVERT = """
import sys, resource
from wafergpt.checkpoints.huggingface.folder import read_folder, write_folder
write_folder(read_folder(sys.argv[1]), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def synthetic(config: GPTConfig) -> StoredModel:
    """A model whose arrays are made one at a time, so that a large one fits a small machine."""
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)

    def maker(shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
        return lambda: np.resize(noise, shape)

    return StoredModel(
        config=config,
        arrays=LazyArrays({name: maker(shape) for name, shape in config.parameter_shapes().items()}),
    )


def run(code: str, *arguments: str) -> Any:
    """What a new process prints last, as JSON."""
    environment = os.environ | {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure_loading(config: GPTConfig, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of each way, and of their ratios round by round."""
    source = folder / "model"
    write_folder(synthetic(config), source)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name in sorted(WAYS, reverse=number % 2 == 1):  # neither is always first
            result = run(WAYS[name], str(source), str(time.monotonic()))
            if number:  # the first round reads the disk
                found[name].append(result)
    summary: dict[str, Any] = {"file_bytes": (source / "model.safetensors").stat().st_size}
    for name, results in found.items():
        summary[name] = {key: statistics.median(r[key] for r in results) for key in results[0]}
        shown = summary[name]
        print(
            f"{name:<13} {shown['load_s']:6.3f} s (with imports {shown['with_import_s']:.2f} s, first logits"
            f" {shown['first_logits_s']:.3f} s), peak {format_bytes(shown['peak_bytes'])} above the imports"
            f" (with a forward pass {format_bytes(shown['peak_after_logits_bytes'])},"
            f" in all {format_bytes(shown['absolute_peak_bytes'])})",
            flush=True,
        )
    pairs = list(zip(found["wafergpt"], found["transformers"], strict=True))
    ratios = {key: round(statistics.median(a[key] / b[key] for a, b in pairs), 3) for key in pairs[0][0]}
    print("ratios ours / theirs: " + ", ".join(f"{key} {value}" for key, value in ratios.items()), flush=True)
    return summary | {"ratios": ratios}


def measure_conversion(config: GPTConfig, folder: Path) -> dict[str, Any]:
    """Peak resident bytes of reading and writing a folder of `config`, to the size of its weights file."""
    source, target = folder / "large", folder / "large-again"
    write_folder(synthetic(config), source)
    file_bytes = (source / "model.safetensors").stat().st_size
    start = time.monotonic()
    peak_bytes = run(CONVERT, str(source), str(target))
    elapsed_s = time.monotonic() - start
    shutil.rmtree(source)
    shutil.rmtree(target)
    ratio = round(peak_bytes / file_bytes, 3)
    print(
        f"converting {format_bytes(file_bytes)} took {elapsed_s:.1f} s, at most {format_bytes(peak_bytes)},"
        f" {ratio} of the file",
        flush=True,
    )
    return {"file_bytes": file_bytes, "peak_bytes": peak_bytes, "peak_to_file": ratio, "elapsed_s": elapsed_s}


def hardware() -> dict[str, Any]:
    """The machine, and how busy it was."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure, print, and end in one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models; figures mean nothing")
    parser.add_argument("--only", choices=["loading", "conversion"], help="one of the two questions")
    parser.add_argument("--folder", help="where to put the model files (default: the temporary folder)")
    parser.add_argument(
        "--json-out", nargs="?", const="", help="write the JSON to this file, or to benchmarks/results"
    )
    options = parser.parse_args()
    quick = options.quick or os.environ.get("WAFERGPT_SMOKE") == "1"
    machine = hardware()
    result: dict[str, Any] = {"benchmark": "load", "date": datetime.date.today().isoformat()}
    result |= {"quick": quick, "hardware": machine, "bars": BARS}
    with tempfile.TemporaryDirectory(prefix="load-", dir=options.folder) as name:
        if options.only != "conversion":
            config = QUICK if quick else family.get("111M").config
            result["loading"] = measure_loading(config, 1 if quick else ROUNDS, Path(name))
        if options.only != "loading":
            config = QUICK if quick else family.get("1.3B").config
            result["conversion"] = measure_conversion(config, Path(name))
    if options.json_out is not None:
        label = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
        default = Path(__file__).parent / "results" / f"load_{label}_{result['date']}.json"
        target = Path(options.json_out) if options.json_out else default
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
