"""One inference engine in its own process: `python inference_worker.py ENGINE PATH PRECISION THREADS SLOTS`.

Commands are JSON lines on stdin, `{"prompts": [[...]], "n_new": 128}`; each is answered on stdout with
`{"seconds", "peak_bytes"}`. The first answer says that the model is loaded, or `{"error"}` why not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main(name: str, path: str, precision: str, n_threads: str, n_slots: str) -> None:
    """Serve until stdin ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from engines import inference
    from engines.worker import memory_bytes

    try:
        started = time.perf_counter()
        engine = inference.ENGINES[name](Path(path), precision, int(n_threads), int(n_slots))
        load_s = time.perf_counter() - started
        print(json.dumps({"ready": True, "load_s": load_s, "version": engine.version}), file=answers)
        for line in sys.stdin:
            command = json.loads(line)
            seconds = inference.timed(engine, command["prompts"], command["n_new"])
            print(json.dumps({"seconds": seconds, "peak_bytes": memory_bytes("VmHWM")}), file=answers)
    except Exception as error:  # whatever a peer raises becomes its named reason
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:600]}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
