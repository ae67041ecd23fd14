"""Every field of TrainState is saved, loaded and compared; a new field fails here until it is."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_config

from wafergpt.errors import CheckpointError
from wafergpt.training import state as training_state
from wafergpt.training.loop import prepare
from wafergpt.training.state import COUNTER_FIELDS, TENSOR_FIELDS, TrainState, differences

FIELDS = [field.name for field in dataclasses.fields(TrainState)]
SHAPES = tiny_config(Path("data")).model.parameter_shapes()


@pytest.fixture
def state(data: Path) -> TrainState:
    trainer = prepare(tiny_config(data))
    for _ in range(3):
        trainer.step()
    return trainer.state


def saved_and_loaded(state: TrainState) -> TrainState:
    tensors, document = training_state.to_arrays(state), training_state.to_document(state)
    return training_state.from_checkpoint(tensors, document, SHAPES, torch.device("cpu"))


def changed(state: TrainState, name: str) -> TrainState:
    """A copy in which only the field `name` differs, by as little as it can."""
    other = copy.deepcopy(state)
    value = getattr(other, name)
    if isinstance(value, dict):
        tensor = value["h.1.mlp.c_proj.weight"]
        tensor.view(torch.int32)[3, 5] ^= 1  # one bit
    elif isinstance(value, bool):
        setattr(other, name, not value)
    elif isinstance(value, int):
        setattr(other, name, value + 1)
    else:
        pytest.fail(f"TrainState.{name} is new: teach save, load and compare about {type(value).__name__}")
    return other


@pytest.mark.parametrize("name", FIELDS)
def test_a_change_of_any_field_is_seen_saved_and_loaded(state: TrainState, name: str) -> None:
    other = changed(state, name)
    found = differences(state, other)
    assert [entry.split(".")[0] for entry in found] == [name]
    assert differences(other, saved_and_loaded(other)) == []


def test_every_field_has_a_place_in_the_checkpoint() -> None:
    assert sorted(FIELDS) == sorted([*TENSOR_FIELDS, *COUNTER_FIELDS])


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_loading_gets_wrong_would_be_seen(state: TrainState, name: str) -> None:
    """The planted bug of this suite."""
    assert differences(state, changed(saved_and_loaded(state), name)) != []


def test_a_new_field_is_refused_by_the_comparison() -> None:
    @dataclasses.dataclass(kw_only=True)
    class Longer(TrainState):
        momentum_of_doom: float = 0.0

    longer = Longer(master={}, exp_avg={}, exp_avg_sq={})
    with pytest.raises(AssertionError, match="momentum_of_doom has no place in a checkpoint"):
        differences(longer, longer)


def test_nan_bits_compare_equal_to_themselves(state: TrainState) -> None:
    state.master["wte.weight"][0, 0] = torch.nan
    assert differences(state, copy.deepcopy(state)) == []


def test_loading_does_not_share_memory_with_the_checkpoint(state: TrainState) -> None:
    arrays = training_state.to_arrays(state)
    loaded = training_state.from_checkpoint(
        arrays, training_state.to_document(state), SHAPES, torch.device("cpu")
    )
    arrays["model"]["wte.weight"][0, 0] += 1
    assert not np.array_equal(loaded.master["wte.weight"].numpy(), arrays["model"]["wte.weight"])


def test_counters_advance(state: TrainState) -> None:
    state.count_step(4, skipped=True)
    state.count_step(4, skipped=True)
    assert (state.step, state.sample_index, state.n_skipped, state.n_skipped_in_a_row) == (5, 20, 2, 2)
    state.count_step(4, skipped=False)
    assert (state.n_skipped, state.n_skipped_in_a_row, state.n_updates) == (2, 0, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, d: t["model"].pop("wpe.weight"), "group 'model': missing or unknown tensor 'wpe.weight'"),
        (lambda t, d: t["optimizer"].pop("exp_avg.ln_f.bias"), "exp_avg.ln_f.bias"),
        (lambda t, d: t["optimizer"].update(extra=np.zeros(1, np.float32)), "unknown tensor 'extra'"),
        (lambda t, d: t.pop("optimizer"), "group 'optimizer'"),
        (
            lambda t, d: t["model"].update({"ln_f.bias": np.zeros(31, np.float32)}),
            r"is float32 \[31\]; the model needs float32 \[32\]",
        ),
        (lambda t, d: t["model"].update({"ln_f.bias": np.zeros(32)}), r"is float64 \[32\]"),
        (lambda t, d: d.pop("n_skipped"), "missing or unknown counters: n_skipped"),
        (lambda t, d: d.update(n_eaten=1), "n_eaten"),
        (lambda t, d: d.update(step=1.5), "step = 1.5 is not of type int"),
        (lambda t, d: d.update(bit_exact=1), "bit_exact = 1 is not of type bool"),
        (lambda t, d: d.update(format=99), "format 99; this version reads 1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(state, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    tensors, document = copy.deepcopy(training_state.to_arrays(state)), training_state.to_document(state)
    damage(tensors, document)
    with pytest.raises(CheckpointError, match=message):
        training_state.from_checkpoint(tensors, document, SHAPES, torch.device("cpu"))
