"""The whole path of `make demo`, at toy size: text, tokenizer, shards, training, evaluation, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from wafergpt import api
from wafergpt.quickstart import free_folder, quickstart
from wafergpt.runs import quickstart as runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    quickstart(runs.smoke(), folder, Console(quiet=True))
    return folder


def test_it_leaves_report_curve_config_checkpoint_and_samples(folder: Path) -> None:
    for name in ("report.md", "report.json", "run/config.yaml", "run/metrics.jsonl", "run/loss.png"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "run" / "checkpoints").glob("step-*"))


def test_the_report_states_what_was_measured(folder: Path) -> None:
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    names = {row["name"] for row in facts["evaluation"]["rows"]}
    assert {"gzip -9", "1-gram Kneser-Ney", "3-gram Kneser-Ney", "5-gram Kneser-Ney"} <= names
    for row in facts["evaluation"]["rows"]:
        assert f"{row['bits_per_byte']:.4f}" in text
    assert "tokens per parameter" in text, "a toy run cannot keep the recipe, and says so"
    model = next(row for row in facts["evaluation"]["rows"] if row["kind"] == "model")
    best = min(row["bits_per_byte"] for row in facts["evaluation"]["rows"] if row["kind"] != "model")
    assert ("does NOT beat" in text) == (model["bits_per_byte"] >= best)


def test_the_model_it_leaves_generates(folder: Path) -> None:
    generation = api.generate(folder / "run", "The class", max_new_tokens=8, seed=1)
    assert 0 < len(generation.token_ids) <= 8
    again = api.generate(folder / "run", "The class", max_new_tokens=8, seed=1)
    assert again.text == generation.text


def test_a_second_demo_takes_another_folder(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    assert free_folder(tmp_path / "a") == tmp_path / "a-2"


def test_departures_name_what_the_recipe_asks_for() -> None:
    config = runs.quickstart()
    short = runs.train_config(config, data=Path("data"), precision=runs.Precision.FP32, total_steps=10)
    found = runs.departures(short, n_train_tokens=1)
    assert len(found) == 3
    full_steps = 20 * config.model.n_params // short.tokens_per_step + 1
    full = runs.train_config(config, data=Path("data"), precision=runs.Precision.FP32, total_steps=full_steps)
    assert not any("tokens per parameter:" in line for line in runs.departures(full, n_train_tokens=10**12))
