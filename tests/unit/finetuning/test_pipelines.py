"""A fine-tuned model in use: what it is asked, what it says, how sure it is; scores and calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_finetuning as tiny

import wafergpt
from wafergpt import api
from wafergpt.checkpoints.native import load_checkpoint
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.checkpoints.task_files import rewrite_task
from wafergpt.conversion.quantize import quantize
from wafergpt.errors import CheckpointError, ConfigError, DataError
from wafergpt.model.gpt import GPT
from wafergpt.model.heads import attach_head
from wafergpt.pipelines import Pipeline, calibrate, task_files_of
from wafergpt.tasks.classification import Classification, Method


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is right."""
    folder = tmp_path_factory.mktemp("taught")
    config, material = tiny.parts(folder, epochs=12.0)
    api.finetune(config, folder / "out", material=material, show=False)
    return folder / "out"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("base") / "base")


def test_one_question_many_questions_records(taught: Path) -> None:
    pipe = wafergpt.pipeline("classify", taught)
    one = pipe("cat good!")
    assert one.text == "yes" and one.details["probabilities"]["yes"] == one.confidence > 0.5
    assert pipe(["cat good!", {"text": "cat good!"}]) == [one, one]
    with pytest.raises(ConfigError, match="needs a 'text', and it must not be empty"):
        pipe("  ")
    with pytest.raises(ConfigError, match=r"unknown config key 'decoding.beams'.*'n_beams'"):
        pipe("x", beams=3)


def test_a_long_text_is_refused_not_cut(taught: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 81 tokens .* more than the context window's 64; shorten it"):
        wafergpt.pipeline("classification", taught)("x" * 80)
    assert wafergpt.pipeline("classification", taught, settings={"cut": True})("x" * 80).text in ("yes", "no")


def test_the_engine_says_what_torch_says(taught: Path) -> None:
    """The served probabilities are those of the trained model: packed file, engine and head against torch.

    float32 both ways: logits of order 5 differ by some 1e-6 of sums over 32 terms, so 1e-4 is ample.
    """
    pipe = wafergpt.pipeline("classification", taught)
    checkpoint = load_checkpoint(pipe.loaded.checkpoint_path)
    model = GPT.from_checkpoint(checkpoint)
    attach_head(model, 2, checkpoint.tensors["head"])
    import torch

    (example,) = pipe.task.encode({"text": "a good!", "label": "no"}, pipe.loaded.tokenizer, 64)
    with torch.no_grad():
        hidden = model.packed(torch.tensor(example.ids), [len(example.ids)])
        logits = model.get_submodule("head")(hidden)[-1]
    assert isinstance(pipe.task, Classification)
    expected = (logits.double() / pipe.task.temperature).softmax(-1)
    found = pipe("a good!").details["probabilities"]
    assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_another_task_and_a_base(taught: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="was taught classification, not chat; ask it for classification"):
        wafergpt.pipeline("chat", taught)
    with pytest.raises(ConfigError, match="has no head for qa: run `wafergpt finetune --task qa` first"):
        wafergpt.pipeline("qa", base)
    pipe = wafergpt.pipeline("writing", base)
    assert "not fine-tuned for writing" in pipe.notes[0]
    assert isinstance(pipe("a", max_new_tokens=3, seed=1).text, str)
    pipe = wafergpt.pipeline("classification", base, settings={"method": "likelihood", "labels": ["a", "b"]})
    assert pipe("x").text in ("a", "b")


def test_it_is_calibrated_once_and_says_how(taught: Path) -> None:
    files = task_files_of(load_checkpoint(taught).path)
    assert files is not None
    found = files.document["calibration"]
    assert found["temperature"] == files.document["settings"]["temperature"] != 1.0
    assert sum(one["n"] for one in found["reliability"]) == found["n"]
    rows = [{"text": "cat good!", "label": "yes"}]
    assert calibrate(taught, rows)[0].startswith(f"calibrated on {found['n']} validation examples")
    again = task_files_of(load_checkpoint(taught).path)
    assert again is not None and again.document == files.document


def test_likelihood_is_calibrated_too(tmp_path: Path) -> None:
    config, material = tiny.parts(tmp_path, settings={"method": "likelihood"}, seq_len=64)
    assert isinstance(material.task, Classification) and material.task.method is Method.LIKELIHOOD
    api.finetune(config, tmp_path / "out", material=material, show=False)
    pipe = wafergpt.pipeline("classification", tmp_path / "out")
    assert pipe.calibration is not None and pipe("a good!").confidence >= 0.5


def test_scores_of_a_file(taught: Path, tmp_path: Path) -> None:
    path = tiny.data(tmp_path)
    found = api.score("classification", taught, path)
    assert set(found.scores) == {"accuracy", "macro_f1", "calibration_error"}
    assert found.scores["accuracy"] > 0.8 and found.n == 120
    assert any(line.startswith("accuracy") for line in found.lines())
    with path.open("a") as file:
        file.write('\n{"text": "", "label": "yes"}')
    assert api.score("classification", taught, path).left_out == {"empty": 1}
    path.write_text('{"text": "a", "label": "maybe"}')
    with pytest.raises(DataError, match="the label 'maybe' is not one of training's: no, yes"):
        api.score("classification", taught, path)


def test_perplexity_is_that_of_training(tmp_path: Path) -> None:
    """exp of the held-out nats that training printed, scored anew through the engine: float32 both ways."""
    config, material = tiny.parts(tmp_path, "writing")
    result = api.finetune(config, tmp_path / "out", material=material, show=False)
    best = min(
        json.loads(line).get("held_out_nats", np.inf)
        for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    )
    assert material.validation is not None and result.held_out is not None
    scores = wafergpt.pipeline("writing", tmp_path / "out").score(material.validation.records, decoding=None)
    # training cut the texts at seq_len = 64 as the window does, so the same tokens count
    assert scores.scores["perplexity"] == pytest.approx(np.exp(best), rel=1e-4)


def test_a_quantized_classifier_answers(taught: Path, tmp_path: Path) -> None:
    quantize(str(taught), tmp_path / "packed", "bf16")
    answer = wafergpt.pipeline("classification", tmp_path / "packed")("cat good!")
    exact = wafergpt.pipeline("classification", taught)("cat good!")
    assert answer.text == exact.text and answer.confidence == pytest.approx(exact.confidence, abs=0.05)
    (tmp_path / "packed" / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"head.safetensors"):
        wafergpt.pipeline("classification", tmp_path / "packed")
    (tmp_path / "packed" / "task.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"task.json is not valid JSON"):
        wafergpt.pipeline("classification", tmp_path / "packed")


def test_a_head_of_another_shape(taught: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(taught, tmp_path / "out")
    path = load_checkpoint(tmp_path / "out").path
    files = task_files_of(path)
    assert files is not None
    settings = {**files.document["settings"], "labels": ["a", "b", "c"]}
    rewrite_task(path, {**files.document, "settings": settings})
    with pytest.raises(CheckpointError, match="should have 3 outputs of width 32"):
        wafergpt.pipeline("classification", tmp_path / "out")


def test_a_conversation_leaves_its_oldest_turns(base: Path) -> None:
    pipe: Pipeline = wafergpt.pipeline("chat", base)
    messages = [{"role": "system", "content": "s"}]
    for _ in range(4):
        messages += [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    messages.append({"role": "user", "content": "last"})
    _, kept = pipe.reply(messages, max_new_tokens=4)
    assert kept[0]["role"] == "system" and kept[-1]["content"] == "last" and len(kept) < len(messages)
    with pytest.raises(ConfigError, match=r"a conversation has .* leaves no room"):
        pipe.reply([{"role": "user", "content": "x" * 90}])


def test_what_was_taught_is_said_when_it_stays_behind(taught: Path) -> None:
    from wafergpt.checkpoints.native_model import read_run

    stored: StoredModel = read_run(taught)
    assert any("it was taught classification" in note for note in stored.notes)
