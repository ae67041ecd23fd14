"""`wafergpt train base` at toy size: mix, tokens, run and card; and going on after it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wafergpt import api, base_model
from wafergpt.assets import labelled
from wafergpt.cli.main import run as command
from wafergpt.config import load
from wafergpt.data.corpus import read_documents
from wafergpt.data.mix import MixReport
from wafergpt.errors import ConfigError
from wafergpt.runs import base as runs
from wafergpt.training.config import TrainConfig

# A sentence of the topic "while" in every Python since 2.0, and one that no topic has.
QUOTE = "statement is used for repeated execution as long as an expression is true"
NEW = "seventeen purple whales sang of the harbour while nobody at all was listening to them"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose mix had to be freed of one test set."""

    def load_all(name: str, **_: Any) -> dict[str, list[dict[str, Any]]]:
        records = [{"text": text, "label": "x", "group": text} for text in (QUOTE.upper(), NEW)]
        return {"train": [], "validation": records[1:], "test": records[:1]}

    folder = tmp_path_factory.mktemp("base") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAFERGPT_SMOKE", "1")
        patch.setattr(labelled, "load_all", load_all)
        config = replace(runs.smoke(), tests=("headlines",))
        patch.setattr(runs, "smoke", lambda: config)
        patch.setattr(
            "wafergpt.base_model.loop.measure_precisions",
            lambda config, duration_s: {runs.Precision.FP32: 2000.0},
        )
        assert command(["train", "base", "--out", str(folder), "--set", "seed=7"]) == 0
    return folder


def test_what_was_found_is_gone_from_the_mix_and_counted(out: Path) -> None:
    text = base_model.data_of(out) / "text"
    report = MixReport.load(text)
    of = report.tests["headlines"]
    assert (of.n_runs, of.n_found, of.n_left) == (4, 1, 0)
    assert report.corpora["pydoc"].n_overlapping >= 2  # the sentence is two lines, in one topic or more
    documents = [document.text for document in read_documents([text / "pydoc.jsonl"])]
    assert len(documents) == report.corpora["pydoc"].n_documents > 70
    assert not any(QUOTE in " ".join(document.split()) for document in documents)


def test_the_card_states_data_licences_tokens_loss_and_that_it_is_small(out: Path) -> None:
    card = " ".join((out / "README.md").read_text(encoding="utf-8").split())
    config = load(TrainConfig, out / "config.yaml")
    final = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert config.seed == 7
    assert "It is small" in card
    assert "PSF-2.0" in card
    assert f"trained on | {config.total_tokens:,} tokens" in card
    assert "headlines 4 1 0" in card
    # The card's windows are the run's, the engine another.
    stated = float(card.split("held out | ")[1].split(" nats")[0])
    assert stated == pytest.approx(final["held_out_nats_per_token"], rel=0.01)


def test_the_base_loads_and_writes(out: Path) -> None:
    assert api.generate(out, "The", max_new_tokens=4, seed=0).text


def test_a_finished_run_is_resumed_without_making_data_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "write_mix", None)
    monkeypatch.setattr("wafergpt.base_model.api.prepare", None)
    (out / "README.md").unlink()
    assert command(["train", "base", "--out", str(out), "--resume"]) == 0
    assert (out / "README.md").is_file()


def test_data_that_are_there_are_used(out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("WAFERGPT_SMOKE", "1")
    monkeypatch.setattr(
        "wafergpt.base_model.loop.measure_precisions",
        lambda config, duration_s: {runs.Precision.BF16: 1000.0},
    )
    words = [
        "train",
        "base",
        "--data",
        str(base_model.data_of(out)),
        "--out",
        str(tmp_path / "two"),
        "--dry-run",
    ]
    assert command(words) == 0
    said = capsys.readouterr().out
    assert "is there already" in said
    assert "total_steps: 7" in said  # 1000 tokens/s for 2 s in steps of 4 x 64
    assert not (tmp_path / "two").exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        base_model.plan(runs.smoke(), tmp_path, print)


@pytest.mark.parametrize(("rate", "taken"), [(1e6, 0), (2e3, 1), (1.0, 1)])
def test_the_largest_model_that_reads_enough_is_taken(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rate: float, taken: int
) -> None:
    """And the fastest precision; where none reads enough, the smallest."""
    large, small = runs.smoke().models[0], replace(runs.smoke().models[0], d_model=32, n_heads=1)
    config = replace(runs.smoke(), models=(large, small), tokens_per_param=0.05, training_s=2.0)
    assert 2e3 * 2 / small.n_params >= 0.05 > 2e3 * 2 / large.n_params
    rates = {runs.Precision.FP32: rate / 2, runs.Precision.BF16: rate}
    monkeypatch.setattr("wafergpt.base_model.loop.measure_precisions", lambda config, duration_s: rates)
    data = base_model.data_of(out)
    run = base_model.plan(config, data, print)
    assert run.model == config.models[taken] and run.precision is runs.Precision.BF16
    assert run.schedule.total_steps == max(2, int(rate * 2 / (config.batch_size * config.seq_len)))
    assert capsys.readouterr().out.count("tokens a parameter") == taken + 1
