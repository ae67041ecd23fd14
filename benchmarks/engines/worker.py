"""One engine in its own process: commands as JSON lines on stdin, answers as JSON lines on stdout.

`python -m engines.worker ENGINE SHAPE MICRO_BATCH as-used|allocator`, then `{"steps": 4}` as often as wanted;
for the engine `peak`, `{"duration_s": 0.5}`. Its first answer says that it is ready.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def memory_bytes(field: str) -> int:
    """`VmHWM` (largest resident size so far) or `VmRSS` of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def main(engine: str, shape: str, micro_batch: str, allocator: str) -> None:
    """Serve until stdin ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from engines import build
    from engines.shapes import SHAPES

    kept = False
    if allocator == "allocator":
        from wafergpt.training.allocator import keep_freed_memory

        kept = keep_freed_memory()
    step = None if engine == build.PEAK else build.build(engine, SHAPES[shape], int(micro_batch))
    print(
        json.dumps({"ready": True, "allocator_taken": kept, "start_bytes": memory_bytes("VmRSS")}),
        file=answers,
    )
    for line in sys.stdin:
        command = json.loads(line)
        if step is None:
            print(json.dumps(build.matmul_peaks(command["duration_s"])), file=answers)
            continue
        seconds, losses = [], []
        for _ in range(command["steps"]):
            started = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - started)
        answer = {"seconds": seconds, "losses": losses, "peak_bytes": memory_bytes("VmHWM")}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
