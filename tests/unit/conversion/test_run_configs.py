"""A Model Zoo YAML becomes files that `train --config` reads; several phases become several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt import config as config_files
from wafergpt.conversion import run_configs
from wafergpt.conversion.run_configs import convert_yaml
from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig
from wafergpt.training.config import DataConfig, OptimConfig, ScheduleConfig, TrainConfig

CONFIG = TrainConfig(
    model=GPTConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=300, max_seq_len=8),
    data=DataConfig(path=Path("data"), seq_len=8),
    optim=OptimConfig(peak_lr=0.01),
    schedule=ScheduleConfig(warmup_steps=1, total_steps=9),
    batch_size=4,
    micro_batch_size=4,
)


@pytest.mark.parametrize("names", [("small",), ("13B", "13B-phase2")], ids=len)
def test_one_file_per_run(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_config(source: Path, data: Path) -> tuple[list[tuple[str, TrainConfig]], tuple[str, ...]]:
        assert (source, data) == (Path("zoo.yaml"), Path("data"))
        return [(name, CONFIG) for name in names], ("a trap was handled",)

    monkeypatch.setattr(run_configs, "run_config", run_config)
    told: list[str] = []
    written = convert_yaml(Path("zoo.yaml"), tmp_path / "run.yaml", Path("data"), tell=told.append)
    expected = ["run.yaml"] if len(names) == 1 else [f"run-{name}.yaml" for name in names]
    assert [path.name for path in written] == expected
    assert told == ["a trap was handled", *(f"wrote {path}" for path in written)]
    assert all(config_files.load(TrainConfig, path) == CONFIG for path in written)
    with pytest.raises(ConfigError, match="exists already"):
        convert_yaml(Path("zoo.yaml"), tmp_path / "run.yaml", Path("data"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not end in .yaml"):
        convert_yaml(Path("zoo.yaml"), tmp_path / "run", Path("data"))
    with pytest.raises(ConfigError, match="add --data"):
        convert_yaml(Path("zoo.yaml"), tmp_path / "run.yaml", None)
