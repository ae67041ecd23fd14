"""From labelled examples to answers: finetune, then classify, translate, answer, chat and write."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "tasks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "finetuning"))

import tiny_finetuning as tiny

from wafergpt import pipeline
from wafergpt.checkpoints.native_model import read_run
from wafergpt.cli.main import run
from wafergpt.data.records import read_records
from wafergpt.errors import ConfigError, DataError
from wafergpt.evaluation.tasks import perplexity
from wafergpt.finetuning.packing import PackedExamples
from wafergpt.finetuning.supervised import TokenObjective
from wafergpt.model.gpt import GPT
from wafergpt.tasks.task import Objective


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and one model fine-tuned for each of two tasks."""
    found = tmp_path_factory.mktemp("verbs")
    tiny.base(found / "base")
    for task in ("classification", "qa"):
        tiny.data(found, task)
        words = ["--epochs", "4", "--lr", "1e-2", "--precision", "fp32"]
        assert run(["finetune", *of(found, task), "--out", str(found / task), *words]) == 0
    return found


def of(folder: Path, task: str) -> list[str]:
    return ["--task", task, "--base", str(folder / "base"), "--data", str(folder / f"{task}.jsonl")]


def test_finetune_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = folder / "again", folder / "classification.jsonl"
    run(["finetune", *of(folder, "classification"), "--out", str(out), "--epochs", "1", "--test", str(data)])
    shown = capsys.readouterr().out
    for part in (
        "examples:\n  task: classification",
        "leak: ",
        "read; none left out",
        "packed rows are",
        "calibrated on",
        "scores on 120 examples",
        "accuracy",
        f"next: wafergpt classify --model {out}",
    ):
        assert part in shown
    with pytest.raises(ConfigError, match="--resume goes on with the run as it was started"):
        run(["finetune", "--out", str(out), "--resume", "--epochs", "2"])
    assert run(["finetune", "--out", str(out), "--resume"]) == 0
    with pytest.raises(ConfigError, match="holds a run already: add --resume"):
        run(["finetune", *of(folder, "classification"), "--out", str(out)])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--task", "qa"], ConfigError, "--base and --data must be given"),
        (["--columns", "text=txt"], DataError, "no column 'txt'; did you mean 'text'"),
        (["--setting", "method=heads"], ConfigError, "'heads' is not one of head, likelihood"),
        (["--alpha", "3"], ConfigError, "go with --lora RANK"),
        (["--validation", "no.jsonl"], DataError, "'no.jsonl' does not exist"),
        (["--max-tokens", "3"], DataError, "nothing to learn from: .* longer than the window"),
    ],
)
def test_finetune_refuses(folder: Path, words: list[str], error: type[Exception], message: str) -> None:
    start = [] if words[0] == "--task" else of(folder, "classification")
    with pytest.raises(error, match=message):
        run(["finetune", *start, "--out", str(folder / "none"), *words])
    assert not (folder / "none").exists()


def test_a_dry_run_touches_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["finetune", *of(folder, "qa"), "--out", str(folder / "none"), "--lora", "2", "--dry-run"])
    shown = capsys.readouterr().out
    assert "rank: 2" in shown and "used" in shown and not (folder / "none").exists()


def test_classify_one_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(folder / "classification")]
    run(["classify", *model, "cat good!"])
    found = capsys.readouterr()
    assert (found.out == "yes\n" and found.err.startswith("confidence 0.")) or "confidence 1.0" in found.err
    run(["classify", *model, "--json", "cat good!"])
    line = json.loads(capsys.readouterr().out)
    assert line["answer"] == "yes" and line["confidence"] == line["probabilities"]["yes"]


def test_classify_lines_and_files(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--model", str(folder / "classification")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a good!\n\nb bad?\n"))
    run(["classify", *model])
    assert capsys.readouterr().out.split() == ["yes", "no"]
    data = str(folder / "classification.jsonl")
    run(["classify", *model, "--file", data, "--score", "--out", str(folder / "answers.csv")])
    assert "calibration_error" in capsys.readouterr().out
    with (folder / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120 and set(rows[0]) == {"text", "label", "answer", "confidence"}
    run(["classify", *model, "--file", data])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answer"] for line in lines] == [row["answer"] for row in rows]
    for words in (
        ["x", "--file", data],
        ["--out", "a.csv", "x"],
        ["--score", "x"],
        ["--file", data, "--out", "a"],
    ):
        with pytest.raises(ConfigError):
            run(["classify", *model, *words])


def test_answer_marks_the_passage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(folder / "qa")]
    run(["answer", *model, "--context", "red cat sun", "--json", "Which?"])
    line = json.loads(capsys.readouterr().out)
    assert "red cat sun"[line["start"] : line["end"]] == line["answer"]
    (folder / "passage.txt").write_text("red cat sun")
    run(["answer", *model, "--context-file", str(folder / "passage.txt"), "Which?"])
    assert capsys.readouterr().out.strip() == line["answer"]
    with pytest.raises(ConfigError, match="give the passage"):
        run(["answer", *model, "Which?"])
    run(["answer", *model, "--context", "red cat sun " * 20, "Which?"])  # in pieces
    assert capsys.readouterr().out.strip() in "red cat sun " * 20
    with pytest.raises(ConfigError, match=r"a question has .* no room in the context window of 64"):
        run(["answer", *model, "--context", "red cat sun", "x" * 80])


def test_a_base_translates_writes_and_chats_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--model", str(folder / "base"), "--max-new-tokens", "3"]
    for verb, words in (("translate", []), ("write", ["--seed", "1"]), ("write", ["--kind", "title"])):
        run([verb, *model, *words, "some words"])
        assert "was not fine-tuned for" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nyou\n\nagain\n"))
    run(["chat", *model, "--json"])
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 3 and "(a new conversation)" in found.err
    run(["chat", *model, "--system", "s", "hi"])
    assert "confidence 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["translate", "write", "chat"])
def test_a_frequency_penalty_ends_a_loop(folder: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """The base of bytes says one of them for ever; a large penalty leaves each said once."""
    said = {}
    for penalty in ("0", "100"):
        words = ["--model", str(folder / "base"), "--max-new-tokens", "12", "--temperature", "0"]
        run([verb, *words, "--frequency-penalty", penalty, "--json", "abc cat"])
        said[penalty] = json.loads(capsys.readouterr().out)["answer"]
    assert len(said["0"]) > len(set(said["0"]))
    kept = said["100"].replace("\ufffd", "")  # bytes that are no character alone
    assert len(kept) == len(set(kept)) > 1


@pytest.mark.parametrize("hints", ["source", "memory"])
def test_a_translation_with_hints(folder: Path, capsys: pytest.CaptureFixture[str], hints: str) -> None:
    """Training and use see the same hints: the nats that training reports are those of the scored answers."""
    data = tiny.data(folder, "translation")
    out = folder / f"hints-{hints}"
    words = ["--epochs", "2", "--lr", "1e-2", "--precision", "fp32", "--setting", f"hints={hints}"]
    run(["finetune", *of(folder, "translation"), "--out", str(out), *words])
    shown = capsys.readouterr().out
    assert ("kept with the model, as its memory: " in shown) == (hints == "memory")
    records = read_records(data)
    pipe = pipeline("translation", out)
    encoded = [e for record in records for e in pipe.task.encode(record, pipe.model.tokenizer, 64)]
    packed = PackedExamples(encoded, Objective.TOKENS, seq_len=64, batch_size=1, micro_batch_size=1)
    with torch.no_grad():
        arrays = packed.arrays(np.arange(packed.n_samples))
        total = TokenObjective(GPT.from_stored(read_run(out))).total(*map(torch.from_numpy, arrays))
    found = perplexity(pipe.task, pipe.model, records)
    assert found == pytest.approx(math.exp(float(total.nats) / total.weight), rel=1e-4)
    run(["translate", "--model", str(out), "--max-new-tokens", "6", "red cat sun"])
    assert capsys.readouterr().out.strip()


def test_a_vocabulary_grows_at_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.data(folder, "translation")
    words = ["--epochs", "1", "--new-tokens", "6", "--out", str(folder / "wider")]
    run(["finetune", *of(folder, "translation"), *words])
    assert "vocabulary: 6 new entries, 263 in all" in capsys.readouterr().out
    run(["translate", "--model", str(folder / "wider"), "--max-new-tokens", "6", "red cat sun"])
    assert pipeline("translation", folder / "wider").loaded.config.vocab_size == 263


def test_the_most_agreed_of_several_is_the_same_each_time(folder: Path) -> None:
    """What is drawn has seeds of its own; the confidence is how much all agree, below 1 when one differs."""
    tiny.data(folder, "translation")
    model = ["finetune", *of(folder, "translation"), "--epochs", "1", "--setting", "candidates=4"]
    run([*model, "--out", str(folder / "several")])
    pipe = pipeline("translation", folder / "several")
    said = [pipe("red cat sun", max_new_tokens=8) for _ in range(2)]
    assert said[0] == said[1] and 0 < said[0].confidence < 1
    one = replace(pipe.task, candidates=1).answer(pipe.model, [{"source": "red cat sun"}], pipe.decoding({}))
    assert one[0].confidence != said[0].confidence


def test_only_a_chat_ranks(folder: Path) -> None:
    with pytest.raises(ConfigError, match="a classification model ranks no passages; a chat does"):
        pipeline("classification", folder / "classification").ranker(["a"])
    gains = pipeline("chat", folder / "base").ranker(["red cat", "sun"]).gains("cat?", ["red cat", "sun"])
    assert gains.shared[0] > 0 == gains.shared[1] and np.isfinite(gains.total).all()


def test_a_hugging_face_folder_is_a_base_like_any_other(folder: Path) -> None:
    run(["convert", str(folder / "base"), str(folder / "hf"), "--to", "huggingface"])
    words = ["--task", "classification", "--base", str(folder / "hf"), "--epochs", "1", "--lora", "2"]
    data = ["--data", str(folder / "classification.jsonl")]
    assert run(["finetune", *words, *data, "--out", str(folder / "from-hf")]) == 0
    assert run(["classify", "--model", str(folder / "from-hf"), "a good!"]) == 0
