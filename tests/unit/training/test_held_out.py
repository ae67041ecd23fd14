"""Held-out loss: every token once, the same for any batch size, and in the right units."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import SEQ_LEN, tiny_config, write_data

from wafergpt.data.shards import ShardSet
from wafergpt.errors import DataError
from wafergpt.model.gpt import GPT
from wafergpt.training.distributed import World
from wafergpt.training.held_out import HeldOut, open_held_out


@pytest.fixture
def held_out(data: Path) -> HeldOut:
    found = open_held_out(tiny_config(data))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model(data: Path) -> GPT:
    return GPT(tiny_config(data).model, seed=1)


def test_windows_predict_every_token_once(held_out: HeldOut) -> None:
    labels = np.concatenate([held_out.window(n)[1:] for n in range(held_out.n_windows)])
    assert np.array_equal(labels, held_out.shards.read(1, held_out.shards.n_tokens - 1))
    assert len(held_out.window(held_out.n_windows - 1)) == 204 % SEQ_LEN + 1


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_loss_is_the_mean_over_all_predictions(held_out: HeldOut, model: GPT, batch_size: int) -> None:
    total = 0.0
    with torch.no_grad():
        for n in range(held_out.n_windows):
            ids = torch.from_numpy(held_out.window(n))[None]
            logits = model(ids[:, :-1]).logits[0].double()
            total -= float(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum())
    found = held_out.loss(model, World(), batch_size)
    # Sums of at most 204 float32 losses near 4: relative 2^-24 each, never more than 204 of them: 1.2e-5.
    assert math.isclose(found.nats_per_token, total / 204, rel_tol=1.3e-5)
    assert found.n_tokens == 204
    assert math.isclose(found.bits_per_byte, found.nats_per_token * 204 / (3 * 205) / math.log(2))


def test_a_loss_over_a_part_is_spread_evenly(held_out: HeldOut) -> None:
    assert held_out.picked(None) == list(range(13))
    assert held_out.picked(5 * SEQ_LEN) == [0, 2, 5, 7, 10]
    assert held_out.picked(1) == [0]
    assert held_out.picked(10**9) == list(range(13))


def test_processes_share_the_windows(held_out: HeldOut, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[list[float]] = []

    def record(self: World, values: list[float]) -> list[float]:
        parts.append(list(values))
        return list(values)

    monkeypatch.setattr(World, "total", record)
    for rank in range(2):
        held_out.loss(model, World(rank=rank, size=2), 2)
    whole = held_out.loss(model, World(), 2)
    nats, n_tokens = (sum(part[i] for part in parts[:2]) for i in range(2))
    assert n_tokens == 204 and math.isclose(nats / n_tokens, whole.nats_per_token, rel_tol=1.3e-5)


def test_data_without_a_held_out_part_has_none(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert open_held_out(tiny_config(tmp_path)) is None


def test_one_token_is_nothing_to_predict(tmp_path: Path) -> None:
    shards = ShardSet.open(write_data(tmp_path / "data", n_held_out=1) / "held_out")
    with pytest.raises(DataError, match="holds 1 token, so there is nothing to predict"):
        HeldOut(shards, SEQ_LEN)
