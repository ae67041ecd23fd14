"""Put the scores of a finished run into the repository: results file, page, pictures.

python benchmarks/tasks/publish.py runs/tasks

Data sets that the run did not measure stay as the newest results have them; the page says of when.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from cases import CASES
from report import EARLIER, render

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/task_scores.md"
PICTURES = ROOT / "docs/explanation/images"
RESULTS = ROOT / "benchmarks/results"
MARK = "<!-- scores -->"


def publish(out: Path) -> Path:
    """The results file that was written."""
    found = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    measured = list(found["cases"])
    found = completed(found, newest(RESULTS))
    cpu = re.sub(r"[^a-z0-9]+", "-", found["machine"].partition(",")[0].lower()).strip("-")
    path = RESULTS / f"tasks_{cpu}_{found['date']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for same_day in set(RESULTS.glob(f"tasks_*_{found['date']}.json")) - {path}:
        same_day.unlink()  # what this run did not measure of it is in `found`
    for name in measured:
        shutil.copy(out / f"{name}.png", PICTURES / f"tasks_{name}.png")
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n\n{render(found)}\n\n{MARK}{after}", encoding="utf-8")
    return path


def newest(folder: Path) -> dict[str, Any] | None:
    """The results with the latest date in their name."""
    paths = sorted(folder.glob("tasks_*.json"), key=lambda path: path.stem[-10:])
    return json.loads(paths[-1].read_text(encoding="utf-8")) if paths else None


def completed(found: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """`found` with the data sets that only `before` has, each marked with when and where it was measured."""
    if before is None:
        return found
    of = f"{before['date']}, {before['machine']}"
    cases = {name: {EARLIER: of, **case} for name, case in before["cases"].items()} | found["cases"]
    names = [case.dataset for case in CASES]
    return {**found, "cases": {name: cases[name] for name in names if name in cases}}


if __name__ == "__main__":
    print(publish(Path(sys.argv[1])))
