"""The benchmark of the wafer's simulator runs, counts rightly, and its newest record meets the bar."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.wafer.machine import native

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")


def test_quick_runs_and_ends_in_json(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    script = ROOT / "benchmarks" / "wafer_simulator.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--threads", "1", "--json-out", str(target)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(target.read_text())
    (row,) = result["summa"]
    assert 0 < row["skipped_cycles"] < row["cycles"]
    rate = (row["cycles"] - row["skipped_cycles"]) * row["edge"] ** 2 / row["seconds"]
    assert row["pe_cycles_per_s"] == pytest.approx(rate, rel=0.5)  # seconds are rounded; not with the skipped
    assert set(result["collectives_error"]) == {"broadcast", "chain", "tree", "two-phase", "generated"}
    assert result["bar_met"] is None


def test_the_newest_record_meets_the_bar() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("wafer_simulator_*.json"), key=lambda p: p.name[-15:])
    result = json.loads(newest.read_text(encoding="utf-8"))
    row = result["summa"][0]
    assert (row["edge"], row["tile"], result["threads"]) == (64, 8, 2)
    assert result["bar_met"] and row["pe_cycles_per_s"] >= 30e6 and row["seconds"] <= 27
    assert abs(row["cycles"] / 195_176 - 1) <= 0.04
