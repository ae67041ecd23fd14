"""The loss curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from wafergpt.errors import DataError, MissingDependencyError
from wafergpt.training.plots import moving_mean, save_loss_curve


def metrics_file(folder: Path, n_steps: int) -> Path:
    path = folder / "metrics.jsonl"
    lines = [
        {"step": n, "loss": 4.0 / n if n % 7 else None, "total_tokens": 64 * n} for n in range(1, n_steps + 1)
    ]
    lines.append({"step": n_steps, "total_tokens": 64 * n_steps, "held_out_nats_per_token": 1.0,
                  "held_out_bits_per_byte": 0.5})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("n_steps", [1, 200])
def test_a_curve_is_drawn(tmp_path: Path, n_steps: int) -> None:
    save_loss_curve(metrics_file(tmp_path, n_steps), tmp_path / "loss.png", "tiny")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5_000


def test_no_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no loss to draw"):
        save_loss_curve(tmp_path / "none.jsonl", tmp_path / "loss.png", "tiny")


def test_without_matplotlib_the_install_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafergpt\[plots\]'"):
        save_loss_curve(metrics_file(tmp_path, 3), tmp_path / "loss.png", "tiny")


def test_the_mean_moves() -> None:
    assert moving_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert moving_mean([2.0, 4.0], 5) == [2.0, 3.0]
