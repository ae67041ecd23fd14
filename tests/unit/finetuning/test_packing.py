"""Packing: whole examples, every one once an epoch, a function of the position; means exact over a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wafergpt.errors import ConfigError, DataError
from wafergpt.finetuning.packing import IGNORED, PackedExamples, pack
from wafergpt.finetuning.supervised import TokenObjective
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tasks.task import NO_HINT, Encoded, Objective

CONFIG = GPTConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=41, max_seq_len=16)


def examples(n: int = 37, seed: int = 2) -> list[Encoded]:
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(2, 14, n):
        ids = tuple(int(i) for i in random.integers(0, 41, length))
        n_told = int(random.integers(1, length))
        found.append(Encoded(ids=ids, counted=(False,) * (length - n_told) + (True,) * n_told))
    return found


def packed(**changes: int) -> PackedExamples:
    return PackedExamples(examples(), Objective.TOKENS, **{"seq_len": 16, "batch_size": 4, **changes})


def test_rows_hold_whole_examples_within_the_length() -> None:
    lengths = [5, 16, 3, 9, 9, 2, 1]
    rows = pack(lengths, 16, range(7))
    assert rows == [[0, 2, 5, 6], [1], [3], [4]]
    assert sorted(i for row in rows for i in row) == list(range(7))
    with pytest.raises(ConfigError, match="an example of 17 tokens does not fit 16"):
        pack([17], 16, [0])


def test_every_example_comes_once_an_epoch_in_another_order() -> None:
    source = packed()
    epochs = [source.row_numbers(epoch * source.n_samples, source.n_samples).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(source.n_samples))
    assert epochs[0] != epochs[1]
    assert sorted(i for row in source.rows for i in row) == list(range(37))


def test_a_batch_is_a_function_of_its_position() -> None:
    source, again = packed(micro_batch_size=2), packed(micro_batch_size=2)
    source.batch(0, 2)
    for a, b in zip(source.batch(6, 2), again.batch(6, 2), strict=True):
        assert np.array_equal(a, b)
    assert source.n_tokens(8) == sum(len(source.batch(i, 2)[0]) for i in range(0, 8, 2))
    far = 3 * source.n_samples + 2
    assert source.n_tokens(far + 2) - source.n_tokens(far) == len(
        source.arrays(source.row_numbers(far, 2))[0]
    )


def test_targets_are_the_next_tokens_that_count() -> None:
    source = PackedExamples(
        [Encoded(ids=(1, 2, 3, 4), counted=(False, False, True, True))], Objective.TOKENS, seq_len=16
    )
    ids, lengths, targets = source.arrays(np.array([0]))
    assert (ids.tolist(), lengths.tolist(), targets.tolist()) == ([1, 2, 3], [3], [IGNORED, 3, 4])


def test_a_mask_that_leaves_nothing_is_an_error_not_a_zero_loss() -> None:
    with pytest.raises(DataError, match="example 2: the mask leaves no token to learn from"):
        PackedExamples(
            [Encoded(ids=(1, 2), counted=(False, True)), Encoded(ids=(1, 2), counted=(False, False))],
            Objective.TOKENS,
            seq_len=8,
        )


def mean_by_hand(model: GPT, source: PackedExamples, step: int) -> torch.Tensor:
    """Example by example, each alone: the mean over all tokens of the step that count."""
    rows = source.row_numbers(step * source.batch_size, source.batch_size)
    total, n = torch.zeros((), dtype=torch.float64), 0
    for i in (i for row in rows for i in source.rows[row]):
        example = source.examples[i]
        ids = torch.tensor([example.ids])
        labels = torch.where(torch.tensor([example.counted[1:]]), ids[:, 1:], IGNORED)
        total = total + model.loss(ids[:, :-1], labels) * example.n_counted
        n += example.n_counted
    return total / n


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_mean_and_its_gradient_do_not_depend_on_micro_batches_or_neighbours(
    micro_batch_size: int,
) -> None:
    """Float64: 16 terms deep, 100 tokens; 1e-12 leaves room for any order of summation."""
    model = GPT(CONFIG, seed=1).double()
    source = packed(micro_batch_size=micro_batch_size)
    objective = TokenObjective(model)
    expected = mean_by_hand(model, source, 1)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    n = 4 // micro_batch_size
    losses = []
    for i in range(n):
        given = [
            torch.from_numpy(array) for array in source.batch(4 + i * micro_batch_size, micro_batch_size)
        ]
        given[-1] = given[-1].double()
        loss = objective(*given) / n
        loss.backward()
        losses.append(float(loss.detach()))
    # the scale is float32: 2^-24 of the mean
    assert sum(losses) == pytest.approx(expected.item(), rel=2e-7)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted[name], rtol=3e-7, atol=1e-12), name


def test_a_mean_of_means_is_caught() -> None:
    """The planted bug: each micro-batch divided by its own count is another number."""
    model = GPT(CONFIG, seed=1).double()
    source = packed(micro_batch_size=1)
    means = []
    for i in range(4):
        ids, lengths, targets = map(torch.from_numpy, source.arrays(source.row_numbers(4 + i, 1)))
        total = TokenObjective(model).total(ids, lengths, targets)
        means.append(total.nats.item() / total.weight)
    assert sum(means) / 4 != pytest.approx(mean_by_hand(model, source, 1).item(), rel=1e-4)


def test_label_weights_are_part_of_the_mean() -> None:
    told = [Encoded(ids=(1, 2), label=0), Encoded(ids=(3,), label=1), Encoded(ids=(4,), label=1)]
    source = PackedExamples(told, Objective.LABEL, seq_len=4, weights=[1.5, 0.75])
    assert float(source.batch(0, 1)[-1]) == pytest.approx(1 / 3.0)
    assert source.fingerprint != PackedExamples(told[::-1], Objective.LABEL, seq_len=4).fingerprint


def test_spans_are_marks_on_their_tokens() -> None:
    told = [
        Encoded(ids=(1, 2, 3, 4), span=(2, 3, 1), added=(0.5, 0.0, 2.0)),
        Encoded(ids=(5,), span=(0, 0, 0)),
    ]
    source = PackedExamples(told, Objective.SPAN, seq_len=8)
    ids, lengths, targets = source.arrays(np.array([0]))
    first = int(ids.tolist().index(1))
    assert sorted(lengths.tolist()) == [1, 4]
    marks = [[0, 0, -np.inf], [0, 0, 0.5], [1, 0, 0.0], [0, 1, 2.0]]
    assert targets[first : first + 4].tolist() == marks
    assert targets[ids.tolist().index(5)].tolist() == [1, 1, 0]
    told[0] = Encoded(ids=(1, 2, 3, 4), span=(2, 3, 1), added=(0.5, 0.0, 1.0))
    assert source.fingerprint != PackedExamples(told, Objective.SPAN, seq_len=8).fingerprint


def test_hints_stand_beside_the_tokens_and_raise_their_logits() -> None:
    """Nats by hand: log softmax of the model's logits and what hints add."""
    told = [
        Encoded(ids=(1, 2, 3), counted=(False, True, True), hints=(NO_HINT, (5, 3.5), NO_HINT)),
        Encoded(ids=(4, 6), counted=(False, True), hints=(NO_HINT, (6, 1.25))),
    ]
    source = PackedExamples(told, Objective.TOKENS, seq_len=8)
    ids, lengths, targets = source.arrays(np.array([0]))
    assert sorted(map(tuple, targets.tolist())) == [(2, 5, 3.5), (3, 0, 0), (6, 6, 1.25)]
    model = GPT(CONFIG, seed=1).double()
    expected = 0.0
    for example in told:
        logits = model(torch.tensor([example.ids[:-1]])).logits[0].clone()
        for at, (hint, nats) in enumerate(example.hints[1:]):
            logits[at, hint] += nats
            expected -= logits[at].log_softmax(0)[example.ids[at + 1]].item()
    total = TokenObjective(model).total(*map(torch.from_numpy, (ids, lengths, targets)))
    assert total.weight == 3 and total.nats.item() == pytest.approx(expected, rel=1e-12)
    bare = [Encoded(ids=example.ids, counted=example.counted) for example in told]
    assert source.fingerprint != PackedExamples(bare, Objective.TOKENS, seq_len=8).fingerprint
