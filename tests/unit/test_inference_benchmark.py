"""The inference benchmark runs, judges as the bars say, and the document shows its newest results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from native_lab import needs_library

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from engines import inference_prepare, inference_quality, inference_report  # noqa: E402
from engines.workers import Failed, Worker  # noqa: E402
from wafergpt.errors import AssetError  # noqa: E402


def entry(engine: str, precision: str, decode: float) -> dict[str, Any]:
    return {
        "engine": engine,
        "precision": precision,
        "median": {"decode": decode},
        "spread": {"decode": [decode, decode]},
        "share": {"decode": 0.8},
    }


def test_a_bar_needs_the_ratio_and_the_share() -> None:
    model = {"engines": [entry("ours", "int8", 300.0), entry("a", "int8", 99.0), entry("b", "bf16", 500.0)]}
    verdict = next(v for v in inference_report.judge("111M", model) if v["bar"].startswith("decode, int8"))
    assert (
        verdict["met"] and verdict["peer"] == "a int8" and verdict["ratio"] == pytest.approx(3.03, abs=0.01)
    )
    model["engines"][0]["share"]["decode"] = 0.74
    assert not inference_report.judge("111M", model)[0]["met"]
    model["engines"] = [entry("ours", "int8", 300.0)]
    alone = inference_report.judge("111M", model)[0]
    assert not alone["met"] and alone["ratio"] is None


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    for code, message in [
        ('print(\'{"error": "no such model"}\')', "no such model"),
        ("raise SystemExit(3)", "ended with exit code 3"),
    ]:
        script = tmp_path / "worker.py"
        script.write_text(code, encoding="utf-8")
        with pytest.raises(Failed, match=message), Worker([sys.executable, str(script)], "planted"):
            pass


def test_every_precision_has_weights_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp once ran one float32 file under four names. OpenVINO's bf16 is a hint on float32 weights."""
    (tmp_path / "hf").mkdir()

    def written(_: object, target: Path, *, kind: object) -> None:
        target.write_text(str(kind), encoding="utf-8")

    monkeypatch.setattr(inference_prepare, "_do", lambda *_: None)
    monkeypatch.setattr("wafergpt.checkpoints.gguf.writer.write_gguf", written)
    places = {
        (peer, precision): inference_prepare._converted(
            peer, precision, "tiny", tmp_path, Path("python"), print
        )
        for peer in ("llama.cpp", "openvino")
        for precision in ("f32", "bf16", "int8", "int4")
    }
    assert places.pop(("openvino", "bf16")) == places["openvino", "f32"]
    assert len(set(places.values())) == len(places)
    kinds = [places["llama.cpp", p].read_text(encoding="utf-8") for p in ("f32", "bf16", "int8", "int4")]
    assert kinds == ["f32", "bf16", "q8_0", "q4_0"]


def test_limits_are_those_of_the_middle_round() -> None:
    probes = [{"read_bytes_per_s": {"int8": float(rate)}} for rate in (40, 90, 50)]
    assert inference_report.median_limits(probes) == {"read_bytes_per_s": {"int8": 50.0}}
    assert inference_report.median_limits([{}, {}]) == {} == inference_report.median_limits([])


def test_quality_is_judged_and_a_model_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> dict[str, float]:
        raise AssetError("no network")

    losses = {"f32": 1.0, "bf16": 0.9999, "int8": 1.002, "int4": 1.05}
    monkeypatch.setattr(
        inference_quality, "_demo", lambda cache, precisions: {p: losses[p] for p in precisions}
    )
    monkeypatch.setattr(inference_quality, "_microformer", missing)
    found = inference_quality.quality(Path("nowhere"), ["bf16", "int8", "int4"])
    assert found["demo"]["met"] == {"int8": True, "int4": False}
    printed = "\n".join(inference_quality.lines(found))
    assert "| demo | int4 | 1.0500 bits/byte | +5.00 % (bar 3 %) |" in printed
    assert "- microformer-mgm: no network" in printed


@needs_library
def test_it_runs_from_end_to_end(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "inference.py"), "--quick"),
            *("--cache", str(tmp_path), "--precisions", "f32", "int8"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    engines = result["models"]["tiny"]["engines"]
    assert [e["precision"] for e in engines] == ["f32", "int8"] and result["quick"]
    assert all(rate > 0 for e in engines for rate in e["median"].values())


def test_the_document_shows_the_newest_results() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("inference_*.json"), key=lambda p: p.name[-15:])
    result = json.loads(newest.read_text(encoding="utf-8"))
    models = result["models"]
    page = (ROOT / "docs" / "explanation" / "inference_speed.md").read_text(encoding="utf-8")
    assert newest.name in page
    for name, model in models.items():
        assert inference_report.table(name, model) in page, f"render it: {name}"
    assert "\n".join(inference_quality.lines(result.get("quality", {}))) in page or not result.get("quality")
