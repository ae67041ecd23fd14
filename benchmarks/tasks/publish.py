"""Put the scores of a finished run into the repository: results file, page, pictures.

python benchmarks/tasks/publish.py runs/tasks
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from report import render

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/task_scores.md"
PICTURES = ROOT / "docs/explanation/images"
MARK = "<!-- scores -->"


def publish(out: Path) -> Path:
    """The results file that was written."""
    found = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    cpu = re.sub(r"[^a-z0-9]+", "-", found["machine"].partition(",")[0].lower()).strip("-")
    path = ROOT / "benchmarks/results" / f"tasks_{cpu}_{found['date']}.json"
    shutil.copy(out / "scores.json", path)
    for name in found["cases"]:
        shutil.copy(out / f"{name}.png", PICTURES / f"tasks_{name}.png")
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n\n{render(found)}\n\n{MARK}{after}", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(publish(Path(sys.argv[1])))
