"""TrainConfig: strict values, one clear line each, and a lossless round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_training import tiny_config

from wafergpt.config import dump, from_dict, load, override, to_dict
from wafergpt.errors import ConfigError
from wafergpt.training.config import OptimConfig, TrainConfig


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.peak_lr=-1", "optim.peak_lr = -1.0 is out of range"),
        ("optim.peak_lr=.nan", "optim.peak_lr = nan is out of range"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("optim.betas=[0.9, 1.0]", r"optim.betas\[1\] = 1.0"),
        ("optim.eps=0", "optim.eps = 0.0"),
        ("optim.weight_decay=-0.1", "optim.weight_decay"),
        ("optim.clip_norm=0", "optim.clip_norm = 0.0"),
        ("schedule.total_steps=0", "schedule.total_steps = 0 must be at least 1"),
        ("schedule.warmup_steps=40", "schedule.warmup_steps = 40 must lie in 0 to 39"),
        ("schedule.final_fraction=1.5", "schedule.final_fraction"),
        ("schedule.decay=square", "'square' is not one of linear, cosine"),
        ("batch_size=0", "batch_size = 0 must be at least 1"),
        ("micro_batch_size=3", "batch_size = 4 is not a multiple of micro_batch_size = 3"),
        ("data.seq_len=0", "data.seq_len = 0"),
        ("data.seq_len=17", "data.seq_len = 17 is longer than model.max_seq_len = 16"),
        ("precision=fp16", "'fp16' is not one of fp32, bf16"),
        ("seed=-1", "seed = -1 is out of range"),
        ("parallel=fsdp2", "fsdp2 is not implemented yet"),
        ("save_every=0", "save_every = 0 must be at least 1"),
        ("eval_every=-1", "eval_every = -1 must be at least 0"),
        ("keep=0", "keep = 0 must be at least 1"),
        ("optim.peek_lr=1", "unknown config key 'optim.peek_lr'; did you mean 'peak_lr'"),
        ("bach_size=1", "unknown config key 'bach_size'; did you mean 'batch_size'"),
        ("model.n_heads=3", "not divisible by n_heads = 3"),
    ],
)
def test_a_bad_value_is_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        override(tiny_config(Path("data")), [assignment])
    assert "\n" not in str(caught.value)


def test_the_tree_survives_yaml_and_json(tmp_path: Path) -> None:
    config = tiny_config(Path("data"))
    (tmp_path / "run.yaml").write_text(dump(config))
    assert load(TrainConfig, tmp_path / "run.yaml") == config
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_clipping_can_be_switched_off() -> None:
    assert override(tiny_config(Path("data")), ["optim.clip_norm=null"]).optim.clip_norm is None


def test_defaults_are_cerebras_gpts() -> None:
    optim = OptimConfig(peak_lr=6e-4)  # Model Zoo Cerebras_GPT/111m.yaml
    assert (optim.betas, optim.eps, optim.weight_decay, optim.clip_norm) == ((0.9, 0.95), 1e-8, 0.1, 1.0)


def test_tokens_are_counted_per_step_and_run() -> None:
    config = tiny_config(Path("data"))
    assert config.tokens_per_step == 4 * 16
    assert config.total_tokens == 40 * 4 * 16
