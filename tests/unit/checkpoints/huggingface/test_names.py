"""Tensor names: the three layouts, what is dropped, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wafergpt.checkpoints.huggingface.names import layout, their_shape
from wafergpt.errors import CheckpointError
from wafergpt.model.config import GPTConfig

CONFIG = GPTConfig(d_model=8, n_layers=2, n_heads=2, vocab_size=11, max_seq_len=4)
Shapes = dict[str, tuple[int, ...]]


def stored(prefix: str = "transformer.") -> Shapes:
    return {prefix + name: their_shape(name, shape) for name, shape in CONFIG.parameter_shapes().items()}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_whole_and_headless_layouts(prefix: str) -> None:
    found = layout(CONFIG, stored(prefix))
    assert found.sources == {name: prefix + name for name in CONFIG.parameter_shapes()}
    assert found.stored_head is None and found.notes == ()


def test_head_beside_the_embedding_is_to_be_compared() -> None:
    assert layout(CONFIG, stored() | {"lm_head.weight": (11, 8)}).stored_head == "lm_head.weight"


def test_head_in_place_of_the_embedding() -> None:
    shapes = stored() | {"lm_head.weight": (11, 8)}
    del shapes["transformer.wte.weight"]
    found = layout(CONFIG, shapes)
    assert found.sources["wte.weight"] == "lm_head.weight" and found.stored_head is None and found.notes


def test_old_buffers_are_dropped_with_a_note() -> None:
    buffers: Shapes = {"transformer.h.0.attn.bias": (1, 1, 4, 4), "transformer.h.1.attn.masked_bias": ()}
    assert layout(CONFIG, stored() | buffers).notes[0].startswith("2 attention-mask buffers")


def _without(name: str) -> Callable[[Shapes], object]:
    return lambda shapes: shapes.pop(name)


REFUSED: dict[str, tuple[Callable[[Shapes], object], str]] = {
    "missing": (_without("transformer.h.1.ln_2.bias"), "'transformer.h.1.ln_2.bias' is missing"),
    "another layer": (lambda s: s.update({"transformer.h.2.ln_1.bias": (8,)}), "h.2.ln_1.bias"),
    "classifier": (lambda s: s.update({"score.weight": (2, 8)}), "'score.weight'"),
    "mixed prefixes": (lambda s: s.update({"wte.weight": (11, 8)}), "'wte.weight'"),
    "not transposed": (lambda s: s.update({"transformer.h.0.attn.c_attn.weight": (24, 8)}), r"\[24, 8\]"),
    "head of another shape": (lambda s: s.update({"lm_head.weight": (12, 8)}), r"\[12, 8\]"),
    "mask of nothing": (lambda s: s.update({"transformer.attn.bias": (1,)}), "'transformer.attn.bias'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    change, message = REFUSED[case]
    shapes = stored()
    change(shapes)
    with pytest.raises(CheckpointError, match=message):
        layout(CONFIG, shapes)
