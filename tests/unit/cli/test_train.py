"""`wafergpt train` before any training: what it says of a folder it cannot go on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt.cli.train import train
from wafergpt.errors import ConfigError


def test_resuming_where_no_run_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run' holds no run to resume"):
        train(out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
