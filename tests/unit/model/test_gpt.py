"""The model's contract beyond parity: names, shapes, refusals, dtypes, arrays, loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.config import to_dict
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.model.cache import KVCache
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.gpt import GPT

TINY = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=61, max_seq_len=16)
IDS = torch.arange(12).view(2, 6)


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(TINY, seed=3).eval()


def test_parameters_are_those_of_the_config(model: GPT) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == TINY.parameter_shapes()
    assert sum(p.numel() for p in model.parameters()) == TINY.n_params
    assert list(model.state_dict()) == list(shapes)  # no buffers, no second head


def test_output_shapes_and_what_is_left_out(model: GPT) -> None:
    with torch.no_grad():
        full = model(IDS, output_hidden_states=True, output_attentions=True)
        last = model(IDS, n_logits=1)
        none = model(IDS, n_logits=0)
    assert full.last_hidden_state.shape == (2, 6, 32)
    assert full.logits.shape == (2, 6, 61)
    assert [h.shape for h in full.hidden_states] == [(2, 6, 32)] * 3
    assert [a.shape for a in full.attentions] == [(2, 4, 6, 6)] * 2
    torch.testing.assert_close(full.attentions[0].sum(-1), torch.ones(2, 4, 6))
    assert last.logits.shape == (2, 1, 61)
    torch.testing.assert_close(last.logits, full.logits[:, -1:])
    assert none.logits is None and none.hidden_states is None and none.attentions is None


def test_asking_for_attentions_changes_nothing_else(model: GPT) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, model(IDS, output_attentions=True).logits)


def test_loss_is_the_mean_over_counted_labels(model: GPT) -> None:
    labels = IDS.roll(-1, 1).clone()
    labels[:, -1] = -100
    with torch.no_grad():
        expected = F.cross_entropy(model(IDS).logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(model.loss(IDS, labels), expected)
        assert model.loss(IDS, torch.full_like(IDS, -100)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.tensor([[0, 61]])}, "token id 61 is outside the vocabulary (0 to 60)"),
        ({"input_ids": torch.tensor([[0, -1]])}, "token id -1 is outside the vocabulary"),
        ({"input_ids": torch.tensor([[0.5]])}, "token ids must be integers"),
        ({"input_ids": torch.tensor([1, 2])}, "shape [batch, positions]"),
        ({"input_ids": torch.empty(2, 0, dtype=torch.long)}, "shape [batch, positions]"),
        ({"input_ids": torch.zeros(1, 17, dtype=torch.long)}, "position 16 is outside the context window"),
        ({"input_ids": IDS, "position_ids": IDS + 6}, "position 16 is outside the context window"),
        ({"input_ids": IDS, "position_ids": IDS[0]}, "position_ids must have the shape of input_ids"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 5).long()},
            "attention_mask must have shape [2, 6]",
        ),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 6)}, "not an additive mask"),
        ({"input_ids": IDS, "n_logits": 7}, "n_logits = 7"),
        ({"input_ids": IDS, "n_logits": -1}, "n_logits = -1"),
    ],
)
def test_refusals(model: GPT, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (IDS[:1], "labels have shape [1, 6]"),
        (IDS + 55, "label 61 is outside"),
        (IDS - 1, "label -1 is outside"),
    ],
)
def test_refused_labels(model: GPT, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model.loss(IDS, labels)
    assert message in str(caught.value)


class TestComputeDtype:
    def test_converts_matrices_alone(self) -> None:
        mixed = GPT(TINY).to_compute_dtype(torch.bfloat16)
        for parameter in mixed.parameters():
            assert parameter.dtype == (torch.bfloat16 if parameter.ndim == 2 else torch.float32)

    def test_residual_stream_and_logits_stay_float32(self) -> None:
        mixed = GPT(TINY).to_compute_dtype(torch.bfloat16)
        with torch.no_grad():
            output = mixed(IDS, output_hidden_states=True)
        assert [h.dtype for h in output.hidden_states] == [torch.float32, torch.float32, torch.bfloat16]
        assert output.logits.dtype == torch.float32

    @pytest.mark.parametrize("parametrization", list(Parametrization))
    def test_loss_and_gradients_are_near_float32(self, parametrization: Parametrization) -> None:
        """bfloat16 keeps 8 bits (0.4 %); many such errors stay within a few per cent of a gradient."""
        config = replace(TINY, parametrization=parametrization)
        exact, mixed = GPT(config), GPT(config).to_compute_dtype(torch.bfloat16)
        labels = IDS.roll(-1, 1)
        losses = [m.loss(IDS, labels) for m in (exact, mixed)]
        assert abs(losses[0].item() - losses[1].item()) < 0.01 * losses[0].item()
        for loss in losses:
            loss.backward()
        for (name, a), b in zip(exact.named_parameters(), mixed.parameters(), strict=True):
            difference = (a.grad - b.grad.float()).norm() / a.grad.norm()
            key_bias = slice(TINY.d_model, 2 * TINY.d_model)  # softmax ignores it: its gradient is rounding
            if name.endswith("c_attn.bias"):
                difference = torch.cat(
                    [(a.grad - b.grad)[: key_bias.start], (a.grad - b.grad)[key_bias.stop :]]
                )
                difference = difference.norm() / a.grad.norm()
            assert difference < 0.05, name


class TestCache:
    def test_refusals_leave_it_as_it_was(self, model: GPT) -> None:
        cache = KVCache(TINY, 2, capacity=8)
        with torch.no_grad():
            model(IDS, cache=cache)
            expected = model(torch.cat([IDS, IDS[:, :1]], 1)).logits[:, -1]
            for arguments, message in [
                ({"input_ids": IDS[:, :3]}, "the cache is full"),
                ({"input_ids": IDS[:1, :1]}, "the cache holds 2 rows, the input has 1"),
                (
                    {"input_ids": IDS[:, :1], "attention_mask": torch.ones(2, 1).bool()},
                    "attention_mask must have",
                ),
            ]:
                with pytest.raises(ConfigError, match=message):
                    model(**arguments, cache=cache)
            assert cache.length == 6
            torch.testing.assert_close(model(IDS[:, :1], cache=cache).logits[:, 0], expected)

    def test_gradients_are_refused(self, model: GPT) -> None:
        with pytest.raises(ConfigError, match="no_grad"):
            model(IDS, cache=KVCache(TINY, 2))

    def test_size_is_what_the_config_says(self) -> None:
        assert KVCache(TINY, 3, dtype=torch.bfloat16).n_bytes == 3 * 16 * TINY.kv_bytes_per_token()


class TestArrays:
    def test_round_trip_copies(self, model: GPT) -> None:
        arrays = model.to_arrays()
        again = GPT.from_arrays(arrays, TINY)
        for name, parameter in again.named_parameters():
            assert parameter.requires_grad and parameter.dtype == torch.float32
            assert np.array_equal(arrays[name], parameter.detach().numpy())
        arrays["wte.weight"][:] = 7  # neither the old nor the new model sees it
        assert not (again.wte.weight == 7).any() and not (model.wte.weight == 7).any()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a.pop("ln_f.bias"), "weight 'ln_f.bias' is missing"),
            (lambda a: a.update({"ln_f.weigth": a["ln_f.bias"]}), "did you mean 'ln_f.weight'?"),
            (
                lambda a: a.update({"ln_f.bias": np.zeros(3)}),
                "'ln_f.bias' has shape (3,), the config says (32,)",
            ),
        ],
    )
    def test_refusals(self, model: GPT, change: object, message: str) -> None:
        arrays = model.to_arrays()
        change(arrays)  # type: ignore[operator]
        with pytest.raises(CheckpointError) as caught:
            GPT.from_arrays(arrays, TINY)
        assert message in str(caught.value)


class TestLoad:
    def save(self, model: GPT, run: Path, step: int) -> Path:
        store = CheckpointStore(run / "checkpoints")
        return store.save(
            step, {"model": model.to_arrays()}, {"config.json": {"model": to_dict(model.config)}}
        )

    def test_from_a_run_or_a_checkpoint(self, model: GPT, tmp_path: Path) -> None:
        path = self.save(model, tmp_path, 1)
        for directory in (tmp_path, tmp_path / "checkpoints", path, str(tmp_path)):
            loaded = GPT.load(directory)
            assert loaded.config == TINY
            assert torch.equal(loaded(IDS).logits, model(IDS).logits)

    def test_warns_of_what_it_skips(self, model: GPT, tmp_path: Path) -> None:
        self.save(model, tmp_path, 1)
        newer = self.save(model, tmp_path, 2)
        (newer / "model.safetensors").write_bytes(b"damaged")
        with pytest.warns(UserWarning, match="skipped checkpoint .*step-00000002"):
            GPT.load(tmp_path)

    def test_a_config_that_does_not_fit(self, model: GPT, tmp_path: Path) -> None:
        tree = to_dict(TINY) | {"n_layers": 3}
        CheckpointStore(tmp_path).save(1, {"model": model.to_arrays()}, {"config.json": {"model": tree}})
        with pytest.raises(CheckpointError, match=r"weight 'h\.2\.ln_1\.weight' is missing"):
            GPT.load(tmp_path)

    def test_a_checkpoint_of_something_else(self, tmp_path: Path) -> None:
        CheckpointStore(tmp_path).save(1, {"model": {"a": np.zeros(1, np.float32)}}, {"config.json": {}})
        with pytest.raises(CheckpointError, match="has no 'model'"):
            GPT.load(tmp_path)
