"""`wafergpt convert` and `verify` as typed; every format they write works in every verb that reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import wafergpt
from model_lab import STANDARD, TANH, stored_model
from wafergpt.checkpoints.native_model import write_run
from wafergpt.cli.main import main
from wafergpt.evaluation.certificate import Certificate


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tanh-GELU model as a run, and what `convert` makes of it; an erf model beside it."""
    folder = tmp_path_factory.mktemp("models")
    write_run(stored_model(TANH), folder / "run")
    write_run(stored_model(STANDARD, seed=1), folder / "other")
    for target in ("hf", "small.gguf"):
        assert cli("convert", folder / "run", folder / target) == 0
    return folder


def test_every_format_generates_the_same_text(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = wafergpt.generate(models / "run", "the wea", temperature=0, max_new_tokens=10)
    for name in ("hf", "small.gguf"):
        loaded = wafergpt.load(models / name)
        assert loaded.generate("the wea", temperature=0, max_new_tokens=10) == expected
        assert loaded.step is None
        assert cli("generate", "the wea", "--model", models / name, "--greedy", "--max-new-tokens", 10) == 0
        assert capsys.readouterr().out == f"the wea{expected.text}\n"


def test_eval_reads_them_too(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the whether of the weather\n" * 5)
    figures = []
    for name in ("run", "hf"):
        assert cli("eval", "--model", models / name, "--data", tmp_path / "text.txt", "--json") == 0
        figures.append(json.loads(capsys.readouterr().out)["rows"][0]["nats_per_token"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("b", ["hf", "transformers:hf", "small.gguf", "llama.cpp:small.gguf"])
def test_verify_finds_them_the_same(
    b: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    assert cli("verify", "run", b, "--json") == 0
    certificate = Certificate.from_json(capsys.readouterr().out)
    assert certificate.same and certificate.found.n_positions > 150
    assert certificate.found.top1_agreement == 1.0
    assert certificate.found.compared == ("log-probabilities" if "llama" in b else "logits")


def test_verify_finds_others_different(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("verify", models / "run", models / "other") == 5
    captured = capsys.readouterr()
    assert "verdict: NOT the same" in captured.out and captured.err.startswith("error: ")
    assert re.search(r"are not the same model: largest logit difference .* is over the bound", captured.err)
    monkeypatch.chdir(models)
    assert cli("verify", "other", "llama.cpp:small.gguf") == 5
    assert "mean KL in nats" in capsys.readouterr().err
    assert cli("verify", models / "run", models / "other", "--max-kl", 100) == 0  # nearly uniform, both


def test_convert_says_what_it_did(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("convert", models / "other", tmp_path / "q8.gguf", "--dtype", "q8_0") == 0
    out = capsys.readouterr().out
    assert "this model was trained with erf: mean KL" in out and "rounded to q8_0" in out
    assert "verdict: the same" in out and out.endswith(f"wrote {tmp_path / 'q8.gguf'}\n")
    assert Certificate.from_json((tmp_path / "q8.gguf.parity.json").read_text()).same
    assert cli("convert", models / "hf", tmp_path / "run", "--to", "native") == 0
    assert wafergpt.load(tmp_path / "run").step == 0


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["run", "new", "--to", "onnx"], 2, "to: 'onnx' is not one of native, huggingface"),
        (["run", "new", "--dtype", "f64"], 2, "dtype: 'f64' is not one of f32, f16"),
        (["run", "hf"], 2, "'hf' exists already"),
        (["run", "new", "--data", "d"], 2, "--data goes with a Model Zoo .yaml only"),
        (["zoo.yaml", "new"], 2, "does not end in .yaml"),
        (["zoo.yaml", "new.yaml"], 2, "add --data"),
        (["./nothing", "new"], 5, "'./nothing' does not exist"),
        (["run", "new", "--revision", "v1"], 2, "a revision goes with a hub name"),
    ],
)
def test_mistakes_have_one_line_and_a_code(
    arguments: list[str],
    code: int,
    message: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    before = sorted(path.name for path in models.iterdir())
    assert cli("convert", *arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(path.name for path in models.iterdir()) == before
