"""The whole path of `make demo`, at toy size: text, tokenizer, shards, training, evaluation, report."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from wafergpt import api, quickstart_wafer
from wafergpt.model.family import FAMILY
from wafergpt.quickstart import free_folder, quickstart, show_wafer, wafer_page
from wafergpt.runs import quickstart as runs
from wafergpt.wafer.analytic.plan import plan
from wafergpt.wafer.analytic.shape import Shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    quickstart(runs.smoke(), folder, Console(quiet=True))
    return folder


def test_it_leaves_report_curve_config_checkpoint_and_samples(folder: Path) -> None:
    names = ("report.md", "report.json", "wafer.html", "run/config.yaml", "run/metrics.jsonl", "run/loss.png")
    for name in names:
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


def test_it_ends_with_the_wafers_view_of_the_model_and_of_the_seven_sizes(folder: Path) -> None:
    """The speed-up is the measured step over the modelled one; the plans are the planner's own."""
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    page = (folder / "wafer.html").read_text(encoding="utf-8")
    assert [step["execution"] for step in facts["wafer"]["steps"]] == ["streaming", "resident"]
    step_s = facts["trained_s"] / facts["run"]["schedule"]["total_steps"]
    for step in facts["wafer"]["steps"]:
        assert step["host_measured_s"] == pytest.approx(step_s)
        assert step["modelled_speedup"] == pytest.approx(step_s / step["modelled_s"])
        assert f"{step['tokens_per_s']:,.0f}" in text and f"{step['tokens_per_s']:,.0f}" in page
    sizes = [size["name"] for size in facts["wafer"]["sizes"]]
    assert sizes == ["111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B"]
    config = FAMILY["13B"].config
    answer = plan("13B", Shape.of(config), seq_len=2048)
    assert facts["wafer"]["sizes"][-1]["run_s"] == answer.run_s
    for where in (text, page):
        assert "modelled" in where and f"{answer.run_s / 86400:,.3g}" in where and "13B" in where
    assert page.count("data:image/png;base64,") == 4


def test_without_matplotlib_the_page_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = runs.smoke().model
    view = quickstart_wafer.look(model, batch_size=8, step_s=0.1)
    for name in [name for name in sys.modules if name.startswith("wafergpt.wafer.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    page = wafer_page(view, model)
    assert "pip install &#x27;wafergpt[plots]&#x27;" in page and "<img" not in page and "13B" in page


def test_the_terminal_shows_both_tables() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    view = quickstart_wafer.look(runs.quickstart().model, batch_size=8, step_s=0.1)
    show_wafer(console, view)
    text = console.export_text()
    assert text.lower().count("modelled") >= 3 and "streaming" in text and "resident" in text
    assert all(name in text for name in quickstart_wafer.SIZES)


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
