"""`wafergpt recipe` as typed."""

from __future__ import annotations

import json

import pytest

from wafergpt import api
from wafergpt.cli.main import run
from wafergpt.errors import ConfigError
from wafergpt.recipes.budget import TrainingRate
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.recipes.scaling_law import Status


def test_a_published_recipe_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "1.3B"]) == 0
    printed = capsys.readouterr().out
    for phrase in ("528 sequences", "346 steps", "23,988", "cosine", "1.997", "arXiv 2304.03208", "0.0025"):
        assert phrase in printed


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    run(["recipe", "--params", "8M", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"title", "model", "figures", "notes"}
    assert document["model"]["parametrization"] == "mup"
    assert document["figures"]["batch in sequences"]["status"] == "assumed"
    assert document["figures"]["tokens per parameter"]["value"] == pytest.approx(20, rel=0.01)


def test_hours_are_measured_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(recipe: Recipe) -> TrainingRate:
        return TrainingRate(flops_per_s=2e11, status=Status.MEASURED, source="a stopwatch")

    monkeypatch.setattr(api, "measure_training_rate", measure)
    run(["recipe", "--hours", "2", "--json"])
    captured = capsys.readouterr()
    duration = json.loads(captured.out)["figures"]["training time in seconds"]
    assert duration["value"] <= 7200 and duration["status"] == "measured"
    assert "measuring" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of NAME, --params, --flops, --hours"),
        (["13B", "--flops", "1e16"], "got NAME and --flops"),
        (["14B"], "did you mean '13B'"),
        (["gpt2"], "not published"),
        (["13B", "--vocab-size", "5"], "apply to derived recipes only"),
        (["--params", "many"], "'many' is not a count"),
        (["--params", "-8M"], "positive"),
        (["--flops", "10"], "too small"),
        (["--hours", "-2"], "hours"),
        (["--params", "8M", "--seq-len", "0"], "max_seq_len = 0"),
    ],
)
def test_bad_questions_get_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(["recipe", *arguments])
