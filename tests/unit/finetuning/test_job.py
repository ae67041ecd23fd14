"""Runs: what they leave, exact resume, early stopping, adapters, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_finetuning as tiny

import wafergpt
from wafergpt.api import finetune_parts, stored_finetune
from wafergpt.checkpoints.native import CheckpointStore, load_checkpoint
from wafergpt.checkpoints.task_files import read_task
from wafergpt.errors import CheckpointError, ConfigError, DataError
from wafergpt.finetuning.config import ClassWeights
from wafergpt.finetuning.job import FineTuning
from wafergpt.finetuning.material import gather, tokenizer_of
from wafergpt.model.config import LORA_TARGETS, LoRAConfig
from wafergpt.runs.finetune import Plan
from wafergpt.tasks.registry import TASKS
from wafergpt.training import metrics
from wafergpt.training.config import Precision
from wafergpt.training.metrics import CLOCK_FIELDS
from wafergpt.training.signals import Interrupted
from wafergpt.training.step import Trainer

SETTINGS = {"chat": {"system": "Be kind."}}
LORA = LoRAConfig(rank=2, targets=LORA_TARGETS)


def groups_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return load_checkpoint(folder).tensors


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Model, optimiser and log, to the bit."""
    for part in (".", "training"):
        left, right = groups_of(a / part), groups_of(b / part)
        assert {g: set(t) for g, t in left.items()} == {g: set(t) for g, t in right.items()}
        for group, tensors in left.items():
            for name, array in tensors.items():
                assert np.array_equal(array, right[group][name]), f"{part}/{group}/{name}"
    assert log_of(a) == log_of(b)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learned_and_used(ram_path: Path, task: str) -> None:
    config, material = tiny.parts(ram_path, task, settings=SETTINGS.get(task))
    result = tiny.teach(config, material, ram_path / "out")
    losses = [line["held_out_nats"] for line in log_of(ram_path / "out") if "held_out_nats" in line]
    assert min(losses[1:]) < losses[0]
    loaded = wafergpt.load(ram_path / "out")
    assert loaded.config == tiny.CONFIG and str(result.held_out).startswith(f"{losses[-1]:.4f} nats/")
    pipe = wafergpt.pipeline(task, loaded)
    assert pipe.task == material.task and pipe.notes == ()
    records = [material.task.question(record) for record in material.train.records[:3]]
    answers = pipe(records, max_new_tokens=4)
    assert len(answers) == 3 and all(0 <= answer.confidence <= 1 for answer in answers)


# In bf16 with adapters and a head everything takes part that a checkpoint must bring back.
@pytest.mark.parametrize("stop_at", [2, 5])
@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("classification", {"precision": Precision.BF16, "lora": LORA}),
        ("translation", {"precision": Precision.BF16}),
        ("qa", {"precision": Precision.FP32}),
    ],
    ids=["lora", "full", "span"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, changes: dict[str, Any], stop_at: int
) -> None:
    config, material = tiny.parts(ram_path, task, patience=0, save_every=3, **changes)
    tiny.teach(config, material, ram_path / "whole")
    step = Trainer.step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.state.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", interrupted)
        tiny.teach(config, material, ram_path / "stopped")
    result = tiny.teach(config, material, ram_path / "stopped", resume=True)
    assert result.bit_exact
    assert_same_run(ram_path / "whole", ram_path / "stopped")


def test_a_killed_run_goes_on_to_the_same_bits(ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No goodbye: what was done after the last checkpoint is done again."""
    config, material = tiny.parts(ram_path, patience=0, save_every=3)
    tiny.teach(config, material, ram_path / "whole")
    step = Trainer.step

    def killed(trainer: Trainer) -> Any:
        if trainer.state.step == 5:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", killed)
        tiny.teach(config, material, ram_path / "killed")
    tiny.teach(config, material, ram_path / "killed", resume=True)
    assert_same_run(ram_path / "whole", ram_path / "killed")


def test_a_resume_that_starts_the_moments_anew_is_caught(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: resume forgets Adam's first moment."""
    prepare = FineTuning.prepare

    def forgetful(job: FineTuning, checkpoint: Any, world: Any, lines: Any) -> Trainer:
        trainer = prepare(job, checkpoint, world, lines)
        for moment in trainer.state.exp_avg.values():
            moment.zero_()
        return trainer

    monkeypatch.setattr(FineTuning, "prepare", forgetful)
    with pytest.raises(AssertionError):
        test_a_killed_run_goes_on_to_the_same_bits(ram_path, monkeypatch)


def test_the_best_model_is_kept_and_the_run_ends_early(ram_path: Path) -> None:
    """A rate far too high: the first evaluations are the best."""
    config, material = tiny.parts(ram_path, "translation", epochs=20.0, peak_lr=1.0, eval_every=1, patience=2)
    result = tiny.teach(config, material, ram_path / "out")
    lines = [line for line in log_of(ram_path / "out") if "held_out_nats" in line]
    best = min(lines, key=lambda line: line["held_out_nats"])
    assert lines[-1]["step"] == best["step"] + 2 < config.schedule.last_step
    assert load_checkpoint(ram_path / "out").step == best["step"]
    events = [line["event"] for line in metrics.read(ram_path / "out" / "events.jsonl")]
    assert "stopped early" in events and events[-1] == "finished"
    before = groups_of(ram_path / "out")
    again = tiny.teach(config, material, ram_path / "out", resume=True)
    assert again.checkpoint == result.checkpoint
    after = groups_of(ram_path / "out")
    assert all(np.array_equal(before["model"][name], after["model"][name]) for name in before["model"])


def test_adapters_are_merged_into_a_plain_model(ram_path: Path) -> None:
    config, material = tiny.parts(ram_path, "translation", lora=LORA)
    tiny.teach(config, material, ram_path / "out")
    found = groups_of(ram_path / "out")
    assert set(found) == {"model"} and set(found["model"]) == set(tiny.CONFIG.parameter_shapes())
    trained = groups_of(ram_path / "out" / "training")["model"]
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    changed = {n for n, a in found["model"].items() if not np.array_equal(a, material.base.arrays[n])}
    assert changed == {name.replace("lora_a", "weight") for name in trained if name.endswith("lora_a")}


def test_the_folder_says_what_was_taught(ram_path: Path) -> None:
    config, material = tiny.parts(ram_path)
    tiny.teach(config, material, ram_path / "out")
    files = read_task(load_checkpoint(ram_path / "out").path)
    assert files is not None and files.document["task"] == "classification"
    assert files.document["settings"]["labels"] == ["no", "yes"]
    assert files.head["weight"].shape == (2, 32)
    assert stored_finetune(ram_path / "out") == config


def test_balanced_weights_count_rare_labels_more(ram_path: Path) -> None:
    rows = [{"text": f"a {i}", "label": "often" if i % 4 else "rare"} for i in range(80)]
    (ram_path / "classification.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, material = tiny.parts(ram_path)
    weights = material.label_weights(ClassWeights.BALANCED)
    counts = [sum(row.label == i for row in material.train.rows) for i in (0, 1)]
    assert weights[0] * counts[0] == pytest.approx(weights[1] * counts[1])
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
    _, tokens = tiny.parts(ram_path, "translation")
    with pytest.raises(ConfigError, match="balanced needs a classification head"):
        tokens.label_weights(ClassWeights.BALANCED)


def test_random_weights_start_elsewhere_and_say_so(ram_path: Path) -> None:
    config, material = tiny.parts(ram_path, random_weights=True, seed=9)
    tiny.teach(config, material, ram_path / "out")
    plain, _ = tiny.parts(ram_path, seed=9)
    tiny.teach(plain, material, ram_path / "base")
    first = [log_of(ram_path / name)[0]["grad_norm"] for name in ("out", "base")]
    assert first[0] != first[1]
    with pytest.raises(ConfigError, match="random_weights with lora"):
        dataclasses.replace(config, lora=LORA)


def test_other_data_or_another_base_is_not_resumed(ram_path: Path) -> None:
    config, material = tiny.parts(ram_path)
    tiny.teach(config, material, ram_path / "out")
    fewer = dataclasses.replace(material.train, encoded=material.train.encoded[1:])
    with pytest.raises(DataError, match="is not the data this run was trained on"):
        tiny.teach(config, dataclasses.replace(material, train=fewer), ram_path / "out", resume=True)
    arrays = {name: array + 1 for name, array in material.base.arrays.items()}
    other = dataclasses.replace(material, base=dataclasses.replace(material.base, arrays=arrays))
    with pytest.raises(DataError, match="is not the data"):
        tiny.teach(config, other, ram_path / "out", resume=True)
    with pytest.raises(ConfigError, match=r"cannot resume with another optim.peak_lr"):
        changed = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=1.0))
        tiny.teach(changed, material, ram_path / "out", resume=True)


def test_a_base_of_another_vocabulary(ram_path: Path) -> None:
    small = dataclasses.replace(tiny.CONFIG, vocab_size=100)
    with pytest.raises(CheckpointError, match="tokenizer has 257 entries, the base only 100"):
        tokenizer_of(tiny.stored(small))
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        tokenizer_of(dataclasses.replace(tiny.stored(), tokenizer=None))


def test_leaks_between_training_and_validation_are_told(ram_path: Path) -> None:
    path = tiny.data(ram_path)
    config, material = tiny.parts(ram_path)
    assert not any("leak" in notice for notice in material.notices)
    examples = dataclasses.replace(config.examples, validation=path)
    found = gather(tiny.stored(), path, examples, 64)
    assert any(n.startswith("leak: 120 questions of validation") for n in found.notices)


def test_a_plan_becomes_a_run_that_its_folder_tells(ram_path: Path) -> None:
    tiny.base(ram_path / "base")
    plan = Plan(
        base=ram_path / "base",
        data=tiny.data(ram_path, "translation"),
        examples=tiny.ExamplesConfig(task="translation"),
        seq_len=40,
    )
    config, material = finetune_parts(plan, ["patience=7"])
    assert config.patience == 7 and config.model == tiny.CONFIG and config.data.seq_len == 64
    assert material.train.n_read + (material.validation.n_read if material.validation else 0) == 120
    rows = config.batch_size * len(material.train.rows) * 42 / 64 / len(material.train.rows)
    assert 12 <= rows <= 40  # about 32 examples of 42 positions a step


def test_one_checkpoint_is_the_model(ram_path: Path) -> None:
    config, material = tiny.parts(ram_path)
    tiny.teach(config, material, ram_path / "out")
    assert len(CheckpointStore(ram_path / "out" / "checkpoints").paths()) == 1
