"""Loads folders, each in a forked child under limits; prints one JSON line per folder.

`python -m hostile_lab.child LOADER < CASES`, where each line of CASES is a JSON object with `name`, `path`,
`folder` (where its files may be), `folder_bytes` and `tamper`. LOADER is `ours`, or a planted bad one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hostile_lab import planted
from hostile_lab.watch import Watch, limit, reset_peak, resident
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.errors import WaferGPTError, did_you_mean

MAX_CHARS = 10_000  # of a message; the report fits in the pipe


def load(path: str) -> None:
    """All of a model: every array is made once, none is kept."""
    model = read_folder(path)
    for name in model.arrays:
        if model.arrays[name].dtype != "float32":
            raise AssertionError(f"{name} is not float32")


def report(case: dict[str, Any], loader: Any) -> dict[str, Any]:
    """What happened, from inside the child."""
    watch = Watch(Path(case["folder"]), case["tamper"])
    limit(case["folder_bytes"])
    before_bytes = reset_peak()
    result: dict[str, Any] = {"name": case["name"], "error": None, "exit_code": 0}
    watch.start()
    try:
        loader(case["path"])
    except WaferGPTError as error:
        watch.stop()
        result.update(error=str(error)[:MAX_CHARS], exit_code=error.exit_code, kind=type(error).__name__)
    except BaseException as error:  # a traceback is what must not reach a user: the runner says so
        watch.stop()
        last = traceback.format_exception_only(error)[-1].strip()[:300]
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.update(error=f"{last} ({where.filename}:{where.lineno})", exit_code=1, kind="unexpected")
    watch.stop()
    result["peak_bytes"] = resident("VmHWM") - before_bytes
    result["violations"] = watch.violations[:20]
    return result


def run(case: dict[str, Any], loader: Any) -> dict[str, Any]:
    """Fork, load there, read the report through a pipe; a child that died is a report too."""
    reader, writer = os.pipe()
    started_s = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(report(case, loader)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        result: dict[str, Any] = json.loads(text)
    else:
        died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
        result = {"name": case["name"], "error": died, "kind": "died", "exit_code": -1}
        result |= {"peak_bytes": 0, "violations": []}
    return result | {"elapsed_s": time.monotonic() - started_s}


def main() -> None:
    loader = load if sys.argv[1] == "ours" else planted.LOADERS[sys.argv[1]]
    cases = [json.loads(line) for line in sys.stdin]
    warm = os.environ["HOSTILE_WARM"]  # a valid folder: what the first load imports is no case's fault
    load(warm)
    did_you_mean("a", ["b"])
    reset_peak()
    for case in cases:
        print(json.dumps(run(case, loader)), flush=True)


if __name__ == "__main__":
    main()
