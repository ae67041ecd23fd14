"""A stored model written as a run folder comes back whole, and every verb's reader takes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.checkpoints.native_model import read_run, write_run
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel, check_arrays
from wafergpt.config import to_dict
from wafergpt.errors import CheckpointError
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

CONFIG = GPTConfig(
    d_model=16,
    n_layers=1,
    n_heads=2,
    vocab_size=260,
    max_seq_len=8,
    parametrization=Parametrization.MUP,
)


@pytest.fixture
def stored() -> StoredModel:
    arrays = GPT(CONFIG).to_arrays()
    return StoredModel(
        config=CONFIG,
        arrays=LazyArrays({name: lambda a=a: a for name, a in arrays.items()}),
        tokenizer=Tokenizer.train(["abc"], 257),
        chat_template="{{ messages }}",
        provenance={"name": "small", "step": 7},
    )


def test_round_trip(stored: StoredModel, tmp_path: Path) -> None:
    write_run(stored, tmp_path / "run")
    back = read_run(tmp_path / "run")
    assert back.config == CONFIG and back.chat_template == "{{ messages }}"
    assert back.provenance == {"name": "small", "step": 7} and back.notes == ()
    assert back.tokenizer is not None and back.tokenizer.to_bytes() == stored.tokenizer.to_bytes()
    assert set(back.arrays) == set(CONFIG.parameter_shapes())
    for name, array in back.arrays.items():
        np.testing.assert_array_equal(array, stored.arrays[name])
    assert GPT.load(tmp_path / "run").config == CONFIG


def test_without_tokenizer_and_template(stored: StoredModel, tmp_path: Path) -> None:
    write_run(dataclasses.replace(stored, tokenizer=None, chat_template=None), tmp_path / "run")
    back = read_run(tmp_path / "run")
    assert back.tokenizer is None and back.chat_template is None


def test_a_run_says_how_it_was_trained_but_not_where(tmp_path: Path) -> None:
    arrays = GPT(CONFIG).to_arrays()
    run = {"model": to_dict(CONFIG), "seed": 3, "data": {"path": "/home/me", "seq_len": 8}, "log_every": 1}
    CheckpointStore(tmp_path).save(
        5, {"model": arrays}, {"config.json": run, "data.json": {"fingerprint": "f"}}
    )
    assert read_run(tmp_path).provenance == {
        "step": 5,
        "training": {"seed": 3, "seq_len": 8, "parametrization": "mup", "init_std": 0.08},
        "training_data": {"fingerprint": "f"},
    }


@pytest.mark.parametrize(
    "document, message",
    [
        ({}, "does not say what model it holds"),
        ({"model": {"d_model": 16}}, "missing config key 'model.n_layers'"),
        ({"model": to_dict(dataclasses.replace(CONFIG, n_layers=2))}, r"weight 'h.1.ln_1.weight' is missing"),
    ],
)
def test_what_does_not_fit_is_refused(document: dict, message: str, tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(5, {"model": GPT(CONFIG).to_arrays()}, {"config.json": document})
    with pytest.raises(CheckpointError, match=message):
        read_run(tmp_path)


def test_check_arrays_names_the_first_that_is_wrong() -> None:
    arrays = GPT(CONFIG).to_arrays()
    check_arrays(CONFIG, arrays)
    with pytest.raises(CheckpointError, match=r"unknown weight 'ln_f.weigth'; did you mean 'ln_f.weight'"):
        check_arrays(CONFIG, arrays | {"ln_f.weigth": arrays["ln_f.bias"]})
    with pytest.raises(CheckpointError, match=r"'ln_f.bias' has shape \(3,\), the config says \(16,\)"):
        check_arrays(CONFIG, arrays | {"ln_f.bias": np.zeros(3, np.float32)})
