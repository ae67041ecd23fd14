"""Two processes under torchrun (gloo) train as one does: same samples, losses within 1e-5 relative."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ddp_run import N_STEPS, configs, train

from wafergpt.training import metrics
from wafergpt.training.distributed import World
from wafergpt.training.fit import FitOptions, fit


@pytest.fixture(scope="module")
def together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What each of two processes found, and the folder they wrote to."""
    out = tmp_path_factory.mktemp("ddp")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(Path(__file__).with_name("ddp_run.py")), str(data), str(out),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        errors = process.communicate(timeout=300)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # after a time-out its workers would live on
    assert process.returncode == 0, errors[-3000:]
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)], out


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, dict[str, list[float]]]:
    torch.set_num_threads(1)
    return {name: train(config, World()) for name, config in configs(data).items()}


def error(losses: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, reference, strict=True))


# float32: the bar. bfloat16: each process rounds its own gradients to 2^-9 before they are averaged;
# 20 updates of such noise, an order of magnitude below the updates themselves: 2e-3 of the loss.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("fp32", 1e-5), ("fp32 accumulated", 1e-5), ("bf16 accumulated", 2e-3)]
)
def test_losses_equal_those_of_one_process(together, alone, name: str, tolerance: float) -> None:  # type: ignore[no-untyped-def]
    found, _ = together
    assert found[0][name]["losses"] == found[1][name]["losses"]
    assert len(found[0][name]["losses"]) == N_STEPS
    assert error(found[0][name]["losses"], alone[name]["losses"]) < tolerance


def test_the_sample_order_is_the_same(together, alone) -> None:  # type: ignore[no-untyped-def]
    """Each step's eight windows: the first four in process 0, the last four in process 1."""
    found, _ = together
    first, second = (found[rank]["fp32"]["windows"] for rank in range(2))
    merged = [
        window
        for step in range(N_STEPS)
        for window in first[4 * step : 4 * step + 4] + second[4 * step : 4 * step + 4]
    ]
    assert merged == alone["fp32"]["windows"]


def test_processes_that_read_the_same_share_would_be_seen(together, alone) -> None:  # type: ignore[no-untyped-def]
    found, _ = together
    assert error(found[0]["planted"]["losses"], alone["fp32"]["losses"]) > 1e-5
    assert found[0]["planted"]["windows"] == found[1]["planted"]["windows"]


def test_the_standard_caller_writes_one_run(data: Path, together) -> None:  # type: ignore[no-untyped-def]
    """One of the two processes writes; a single process may go on from there, and says what changed."""
    found, out = together
    lines = metrics.read(out / "run" / "metrics.jsonl")
    assert [line["loss"] for line in lines if "loss" in line] == found[0]["fp32"]["losses"]
    assert lines[-1]["final"] and lines[-1]["held_out_tokens"] == 204
    options = FitOptions(console=None, plot=False, measure_peak=False)
    assert not fit(configs(data)["fp32"], out / "run", resume=True, options=options).bit_exact
    assert "processes was 2, is 1" in (out / "run" / "events.jsonl").read_text()
