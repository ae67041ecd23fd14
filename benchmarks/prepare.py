"""How fast is `wafergpt prepare` beside the `tokenizers` library alone, and does its memory stay flat?

Speed: for each corpus the library encodes the same documents (its `encode_batch` and `encode_batch_fast`, as
they are and cut to 4,000 characters; the best counts) and `prepare` runs from files to published shards. They
take turns; the ratio is the median over rounds. Memory: `prepare` reads a generated text file, small then ten
times as large, and the peak resident memory of all its processes is compared. The last line is JSON.

    python benchmarks/prepare.py                   # about five minutes on two cores
    python benchmarks/prepare.py --quick           # small: does everything run?
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wafergpt.assets.corpora import documents
from wafergpt.data.config import PrepareConfig
from wafergpt.data.prepare import prepare
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.pretokens import pieces
from wafergpt.units import MIB, format_bytes

BARS = {"tokens_per_s": 1.5e6, "ratio_to_library": 0.85, "memory_growth": 1.15}
ROUNDS = 5
LARGE_BYTES = 1_000_000_000
CHILD = """
import sys
from pathlib import Path
from wafergpt.data.config import PrepareConfig
from wafergpt.data.prepare import prepare
config = PrepareConfig(sources=(sys.argv[1],), output=Path(sys.argv[2]))
print(prepare(config).train.n_tokens)
"""


def corpora(quick: bool) -> dict[str, list[str]]:
    """Documents by kind of text: books, chat, code, and characters that Python's `re` path leaves alone."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    library = [
        p for p in sorted(stdlib.rglob("*.py")) if not {"test", "tests", "site-packages"} & set(p.parts)
    ]
    rng = random.Random(0)
    scripts = [
        [chr(code) for code in range(*span)] for span in ((0x5D0, 0x5EB), (0x905, 0x93A), (0x1F600, 0x1F640))
    ]
    words = ["".join(rng.choices(script, k=rng.randrange(1, 8))) for script in scripts for _ in range(3000)]
    kinds = {
        "books": [d.text for name in ("bible-bbe", "bible-kjv", "bible-web") for d in documents(name)],
        "chat": [d.text for d in documents("chitchat")],
        "code": [
            path.read_text(encoding="utf-8") for path in library if b"coding: " not in path.read_bytes()[:200]
        ],
        "other scripts": [" ".join(rng.choices(words, k=400)) for _ in range(2000)],
    }
    return {kind: texts[: max(8, len(texts) // 50)] if quick else texts for kind, texts in kinds.items()}


def timed(action: Callable[[], int]) -> float:
    """Tokens per second of `action`, which returns how many tokens it made."""
    start = time.perf_counter()
    n_tokens = action()
    return n_tokens / (time.perf_counter() - start)


def measure_speed(texts: list[str], tokenizer: Tokenizer, rounds: int, folder: Path) -> dict[str, Any]:
    """Tokens/s of the library's four ways and of `prepare`, interleaved."""
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer_file = tokenizer.save(folder)
    short = [piece for text in texts for piece in pieces(text, 4000)]
    inner = tokenizer.inner

    def library(encode: Callable[[list[str]], Any], given: list[str]) -> Callable[[], int]:
        return lambda: sum(len(encoding.ids) for encoding in encode(given))

    def ours() -> int:
        config = PrepareConfig(
            sources=(str(source),), output=folder / "data", tokenizer=str(tokenizer_file), overwrite=True
        )
        train = prepare(config).train
        return train.n_tokens - train.n_documents  # without the end-of-text ids

    ways = {
        "encode_batch": library(inner.encode_batch, texts),
        "encode_batch_fast": library(inner.encode_batch_fast, texts),
        "encode_batch, cut": library(inner.encode_batch, short),
        "encode_batch_fast, cut": library(inner.encode_batch_fast, short),
        "prepare": ours,
    }
    assert len({way() for way in ways.values()}) == 1, "all count the same tokens (and are warm now)"
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(timed(way))
    best = max((name for name in ways if name != "prepare"), key=lambda name: statistics.median(rates[name]))
    ratio = statistics.median(a / b for a, b in zip(rates["prepare"], rates[best], strict=True))
    return {
        "tokens_per_s": {name: round(statistics.median(found)) for name, found in rates.items()},
        "best_library_way": best,
        "ratio_to_library": round(ratio, 3),
        "text_bytes": sum(len(text.encode()) for text in texts),
    }


def resident_bytes(pid: int) -> int:
    """Anonymous and file memory now held by a process and its children."""
    total = 0
    for task in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{task}/status").read_text())
        total += 1024 * int(found.group(1)) if found else 0
    return total


def generate(path: Path, size_bytes: int) -> None:
    """Text of `size_bytes` whose vocabulary keeps growing, as natural text's does."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    known = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randrange(2, 10))) for _ in range(30_000)]
    with open(path, "w", encoding="ascii") as file:
        written = 0
        while written < size_bytes:
            new = ["".join(rng.choices(letters, k=rng.randrange(4, 12))) for _ in range(20)]
            words = [known[min(29_999, int(rng.paretovariate(0.8)) - 1)] for _ in range(5000)]
            written += file.write(" ".join([*words, *new]) + ".\n")


def measure_memory(size_bytes: int, folder: Path) -> dict[str, Any]:
    """Peak resident bytes over time, in quarters, of `prepare` on a generated file of `size_bytes`."""
    source = folder / "generated.txt"
    generate(source, size_bytes)
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, source, folder / f"out-{size_bytes}"], stdout=subprocess.PIPE, text=True
    )
    samples = []
    while child.poll() is None:
        try:
            samples.append(resident_bytes(child.pid))
        except (FileNotFoundError, ProcessLookupError):  # a process ended between two reads
            continue
        time.sleep(0.05)
    elapsed_s = time.perf_counter() - start
    assert child.stdout is not None
    n_tokens = int(child.stdout.read())
    assert child.returncode == 0
    quarters = [samples[len(samples) * q // 4 : len(samples) * (q + 1) // 4] for q in range(4)]
    return {
        "file_bytes": source.stat().st_size,
        "peak_bytes": max(samples),
        "peak_bytes_by_quarter": [max(quarter, default=0) for quarter in quarters],
        "tokens_per_s": round(n_tokens / elapsed_s),
    }


def hardware() -> dict[str, Any]:
    """The machine, and how busy it was."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def compare_speed(quick: bool, folder: Path) -> dict[str, Any]:
    """`measure_speed` of every corpus, printed as it comes."""
    tokenizer = Tokenizer.gpt2()
    found = {}
    for kind, texts in corpora(quick).items():
        below = folder / kind.replace(" ", "-")
        below.mkdir()
        result = found[kind] = measure_speed(texts, tokenizer, 1 if quick else ROUNDS, below)
        rates, best = result["tokens_per_s"], result["best_library_way"]
        print(
            f"{kind:<14} prepare {rates['prepare'] / 1e6:5.2f} M tokens/s, library {rates[best] / 1e6:5.2f}"
            f" ({best}): ratio {result['ratio_to_library']:.2f}",
            flush=True,
        )
    return found


def compare_memory(quick: bool, folder: Path) -> dict[str, Any]:
    """`measure_memory` on a file and on one ten times as large."""
    large_bytes = 20 * MIB if quick else LARGE_BYTES
    found: dict[str, Any] = {}
    for label, size_bytes in (("small", large_bytes // 10), ("large", large_bytes)):
        result = found[label] = measure_memory(size_bytes, folder)
        quarters = ", ".join(format_bytes(peak) for peak in result["peak_bytes_by_quarter"])
        print(
            f"memory: file of {format_bytes(result['file_bytes'])}, peak {format_bytes(result['peak_bytes'])}"
            f" (by quarter {quarters}), {result['tokens_per_s'] / 1e6:.2f} M tokens/s",
            flush=True,
        )
    found["growth"] = round(found["large"]["peak_bytes"] / found["small"]["peak_bytes"], 3)
    return found


def main() -> None:
    """Measure, print, and end in one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small corpora and files; figures mean nothing")
    parser.add_argument("--only", choices=["speed", "memory"], help="one of the two questions")
    parser.add_argument(
        "--json-out", nargs="?", const="", help="write the JSON to this file, or to benchmarks/results"
    )
    options = parser.parse_args()
    quick = options.quick or os.environ.get("WAFERGPT_SMOKE") == "1"
    machine = hardware()
    result: dict[str, Any] = {"benchmark": "prepare", "date": datetime.date.today().isoformat()}
    result |= {"quick": quick, "hardware": machine, "bars": BARS}
    with tempfile.TemporaryDirectory(prefix="prepare-") as name:
        if options.only != "memory":
            result["speed"] = compare_speed(quick, Path(name))
        if options.only != "speed":
            result["memory"] = compare_memory(quick, Path(name))
    if options.json_out is not None:
        label = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
        default = Path(__file__).parent / "results" / f"prepare_{label}_{result['date']}.json"
        target = Path(options.json_out) if options.json_out else default
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
