"""A base with a larger vocabulary: its rows, a run on it, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_finetuning as tiny

import wafergpt
from wafergpt.api import finetune_parts, stored_finetune
from wafergpt.checkpoints.native import load_checkpoint
from wafergpt.checkpoints.native_model import write_run
from wafergpt.config import to_dict
from wafergpt.conversion import formats
from wafergpt.conversion.convert import Options, convert
from wafergpt.conversion.formats import Format
from wafergpt.errors import ConfigError, DataError
from wafergpt.finetuning.material import gather, tokenizer_of
from wafergpt.finetuning.vocabulary import EMBEDDING, taught, widened
from wafergpt.model.config import Activation, LoRAConfig
from wafergpt.runs.finetune import Plan
from wafergpt.tasks import registry
from wafergpt.tasks.translation import Translation
from wafergpt.training.config import Precision
from wafergpt.training.resume import ConfigChanges, compare
from wafergpt.training.signals import Interrupted
from wafergpt.training.step import Trainer

CHINESE = {"red": "红色", "blue": "蓝色", "cat": "猫咪", "dog": "小狗", "sun": "太阳"}
N_NEW = 12


def pairs(n: int = 120) -> list[dict[str, Any]]:
    """Words and their translation."""
    draw = random.Random(3)
    found = []
    for number in range(n):
        words = draw.choices(tiny.WORDS, k=3)
        found.append(
            {"source": f"{' '.join(words)} {number}", "target": "".join(CHINESE[word] for word in words)}
        )
    return found


def plan(folder: Path, **changes: Any) -> Plan:
    """A run on them, on a base of 257 entries."""
    if not (folder / "base").exists():
        tiny.base(folder / "base")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs())))
    examples = tiny.ExamplesConfig(task="translation", validation_fraction=0.2, new_tokens=N_NEW)
    settings = {"epochs": 3.0, "peak_lr": 1e-2, "precision": Precision.FP32} | changes
    return Plan(base=folder / "base", data=folder / "pairs.jsonl", examples=examples, **settings)


def test_a_new_row_is_the_mean_of_those_that_spelled_it() -> None:
    base = tiny.stored()
    assert base.tokenizer is not None
    wide = widened(base, base.tokenizer, Translation(), pairs(), N_NEW)
    tokenizer = tokenizer_of(wide)
    rows = wide.arrays[EMBEDDING]
    assert tokenizer.vocab_size == 257 + N_NEW
    assert wide.config == dataclasses.replace(base.config, vocab_size=257 + N_NEW)
    assert np.array_equal(rows[:257], base.arrays[EMBEDDING])
    for i in range(257, 257 + N_NEW):
        wanted = base.arrays[EMBEDDING][list(tokenizer.token_bytes(i))].mean(0)
        np.testing.assert_array_equal(rows[i], wanted)
    others = [name for name in base.arrays if name != EMBEDDING]
    assert all(wide.arrays[name] is base.arrays[name] for name in others)


def test_rows_that_no_entry_has_are_used_first() -> None:
    """Published models pad their vocabulary; padding becomes entries before the table grows."""
    base = tiny.stored(dataclasses.replace(tiny.CONFIG, vocab_size=264))
    assert base.tokenizer is not None
    wide = widened(base, base.tokenizer, Translation(), pairs(), 3)
    tokenizer = tokenizer_of(wide)
    assert tokenizer.vocab_size == 260 and wide.config.vocab_size == 264
    assert not np.array_equal(wide.arrays[EMBEDDING][257:260], base.arrays[EMBEDDING][257:260])
    assert np.array_equal(wide.arrays[EMBEDDING][260:], base.arrays[EMBEDDING][260:])


def test_a_run_teaches_them_and_its_folder_has_them(ram_path: Path) -> None:
    config, material = finetune_parts(plan(ram_path))
    assert config.model.vocab_size == 257 + N_NEW
    assert "vocabulary: 12 new entries, 269 in all" in material.notices
    tiny.teach(config, material, ram_path / "out")
    loaded = wafergpt.load(ram_path / "out")
    assert loaded.config.vocab_size == loaded.tokenizer.vocab_size == 257 + N_NEW
    assert len(loaded.tokenizer.encode("太阳")) < len("太阳".encode())
    learned = load_checkpoint(ram_path / "out").tensors["model"][EMBEDDING]
    assert not np.array_equal(learned[257:], material.base.arrays[EMBEDDING][257:])
    answers = wafergpt.pipeline("translation", loaded)([{"source": "red cat sun"}], max_new_tokens=8)
    assert any(word in answers[0].text for word in CHINESE.values())


@pytest.mark.parametrize("to", [Format.HUGGING_FACE, Format.GGUF, Format.MODEL_ZOO])
def test_the_model_is_converted_like_any_other(tmp_path: Path, to: Format) -> None:
    """New entries stand after the end of text; every format keeps ids and rows."""
    base = tiny.stored(dataclasses.replace(tiny.CONFIG, activation=Activation.GELU_TANH))  # GGUF's
    assert base.tokenizer is not None
    wide = widened(base, base.tokenizer, Translation(), pairs(), N_NEW)
    tokenizer = tokenizer_of(wide)
    write_run(wide, tmp_path / "run")
    target = tmp_path / {Format.GGUF: "m.gguf", Format.MODEL_ZOO: "m.mdl"}.get(to, "folder")
    assert convert(str(tmp_path / "run"), target, Options(to=to)).same
    back = formats.read(target).model
    assert back.tokenizer is not None
    assert back.tokenizer.encode("小狗 and 太阳") == tokenizer.encode("小狗 and 太阳")
    np.testing.assert_array_equal(back.arrays[EMBEDDING][: wide.config.vocab_size], wide.arrays[EMBEDDING])


def test_a_stopped_run_goes_on_with_the_same_entries(ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, material = finetune_parts(plan(ram_path))
    tiny.teach(config, material, ram_path / "whole")
    step = Trainer.step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", interrupted)
        tiny.teach(config, material, ram_path / "parts")
    stored = stored_finetune(ram_path / "parts")
    assert stored == config
    _, again = finetune_parts(stored)  # as a later process learns them
    tiny.teach(stored, again, ram_path / "parts", resume=True)
    whole, parts = (load_checkpoint(ram_path / name).tensors["model"] for name in ("whole", "parts"))
    assert all(np.array_equal(array, parts[name]) for name, array in whole.items())


def test_adapters_learn_them_when_they_reach_the_embedding(ram_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"add wte to lora\.targets"):
        finetune_parts(plan(ram_path, lora=LoRAConfig(rank=2)))
    config, material = finetune_parts(plan(ram_path, lora=LoRAConfig(rank=2, targets=("attn.c_attn", "wte"))))
    tiny.teach(config, material, ram_path / "out")
    learned = load_checkpoint(ram_path / "out").tensors["model"][EMBEDDING]
    assert learned.shape == (257 + N_NEW, 32)
    assert (learned[257:] != material.base.arrays[EMBEDDING][257:]).any(1).all(), "every new row"


@pytest.mark.parametrize("task", ["translation", "chat", "writing"])
def test_entries_come_from_all_that_a_task_teaches_to_write(task: str) -> None:
    tokenizer = tiny.byte_tokenizer()
    records: dict[str, list[dict[str, Any]]] = {
        "translation": [{"source": "never", "target": "太阳"}],
        "chat": [{"messages": [
            {"role": "user", "content": "never"}, {"role": "assistant", "content": "太阳"},
            {"role": "user", "content": "neither"}, {"role": "assistant", "content": "猫咪"},
            {"role": "user", "content": "last"},
        ]}],
        "writing": [{"text": "太阳猫咪"}],
    }  # fmt: skip
    found = "".join(taught(registry.make(task), records[task], tokenizer))
    assert "太阳" in found and "never" not in found
    assert ("猫咪" in found) == (task != "translation")


def test_a_changed_key_counts_before_the_examples_are_read(ram_path: Path) -> None:
    """`--set` changes the printed config; what the run is made of must follow."""
    plain = dataclasses.replace(plan(ram_path), examples=tiny.ExamplesConfig(task="translation"))
    overrides = ["examples.new_tokens=5", "examples.validation_fraction=0.5", "seed=4"]
    config, material = finetune_parts(plain, overrides)
    assert config.examples.new_tokens == 5 and config.model.vocab_size == 257 + 5
    assert material.tokenizer.vocab_size == 257 + 5
    assert material.validation is not None and 35 < len(material.validation.records) < 85
    tiny.teach(config, material, ram_path / "out")


def test_a_run_from_before_there_were_new_tokens_goes_on(ram_path: Path) -> None:
    config, _ = tiny.parts(ram_path)
    stored = to_dict(config)
    del stored["examples"]["new_tokens"]
    assert compare(stored, config) == ConfigChanges(free=(), inexact=())
    other = dataclasses.replace(config, examples=dataclasses.replace(config.examples, new_tokens=3))
    with pytest.raises(ConfigError, match="new_tokens: 0 -> 3"):
        compare(stored, other)


def test_what_makes_no_sense_is_refused(ram_path: Path) -> None:
    labels = dataclasses.replace(tiny.ExamplesConfig(task="classification"), new_tokens=4)
    with pytest.raises(ConfigError, match="classification is learned by a head"):
        gather(tiny.stored(), tiny.data(ram_path), labels, 64)
    path = tiny.data(ram_path, "translation", n=6)
    with pytest.raises(DataError, match="too few pairs for 900 new entries"):
        gather(tiny.stored(), path, tiny.ExamplesConfig(task="translation", new_tokens=900), 64)
    with pytest.raises(ConfigError, match="must not be negative"):
        tiny.ExamplesConfig(task="translation", new_tokens=-1)
