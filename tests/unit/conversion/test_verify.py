"""Two models of different shape are not the same model, whichever comes first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model_lab import TANH, stored_model
from wafergpt.checkpoints.native_model import write_run
from wafergpt.conversion.verify import verify
from wafergpt.errors import CheckpointError, ConfigError


def test_a_shorter_window_is_another_model_in_either_order(tmp_path: Path) -> None:
    whole = stored_model(TANH)
    n_kept = TANH.max_seq_len - 8
    (name,) = [n for n, shape in TANH.parameter_shapes().items() if shape[0] == TANH.max_seq_len]
    arrays = {**whole.arrays, name: whole.arrays[name][:n_kept]}
    write_run(whole, tmp_path / "whole")
    write_run(replace(whole, arrays=arrays, config=replace(TANH, max_seq_len=n_kept)), tmp_path / "short")
    paths = [str(tmp_path / "short"), str(tmp_path / "whole")]
    for a, b in (paths, paths[::-1]):
        with pytest.raises(CheckpointError, match="are not the same model: context windows of"):
            verify(a, b)
    assert verify(paths[0], paths[0]).same


def test_a_bad_bound_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="max_kl = nan"):
        verify("nothing", "nothing", max_kl=float("nan"))
