"""Shapes for a number of parameters: the published ones come back, small ones keep the proportions."""

from __future__ import annotations

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import Parametrization
from wafergpt.model.family import FAMILY
from wafergpt.recipes.shape import MIN_LAYERS, shape


@pytest.mark.parametrize("size", ["111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B"])
def test_the_published_widths_and_depths_come_back(size: str) -> None:
    published = FAMILY[size].config
    ours = shape(published.n_params, parametrization=Parametrization.STANDARD)
    assert ours.parameter_shapes() == published.parameter_shapes()
    if size != "2.7B":  # its 32 heads of 80 follow no rule of the family; ours are 20 of 128
        assert ours == published


@pytest.mark.parametrize("n_params", [3e5, 1e6, 2.6e6, 8e6, 3e7, 9e7])
def test_small_models_are_not_all_embedding(n_params: float) -> None:
    config = shape(n_params)
    assert config.n_params == pytest.approx(n_params, rel=0.15)
    assert config.n_layers >= MIN_LAYERS
    assert config.vocab_size * config.d_model <= 0.36 * n_params
    assert config.vocab_size & (config.vocab_size - 1) == config.max_seq_len & (config.max_seq_len - 1) == 0


def test_what_is_asked_for_is_kept() -> None:
    config = shape(8e6, vocab_size=5000, seq_len=300)
    assert (config.vocab_size, config.max_seq_len) == (5000, 300)


@pytest.mark.parametrize("n_params", [1.0, 1e3, 1e14, 0.0, -5.0, float("nan"), float("inf")])
def test_sizes_out_of_range_are_refused(n_params: float) -> None:
    with pytest.raises(ConfigError, match=r"parameters|n_params"):
        shape(n_params)


def test_a_vocabulary_too_large_for_the_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="about 1M parameters with vocabulary 50257"):
        shape(1e6, vocab_size=50257)
