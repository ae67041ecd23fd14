"""GPTConfig: what it resolves, refuses and derives."""

from __future__ import annotations

import math

import pytest

from wafergpt.config import from_dict, override, to_dict
from wafergpt.errors import ConfigError
from wafergpt.model.config import FlopsConvention, GPTConfig, MuPConfig, Parametrization

SMALL = GPTConfig(d_model=64, n_layers=2, n_heads=4, d_ffn=96, vocab_size=100, max_seq_len=16)


def test_left_out_values_are_resolved() -> None:
    standard = GPTConfig(d_model=64, n_layers=2, n_heads=4)
    assert (standard.d_ffn, standard.init_std, standard.mup) == (256, 0.02, None)
    mup = GPTConfig(d_model=64, n_layers=2, n_heads=4, parametrization=Parametrization.MUP)
    assert (mup.d_ffn, mup.init_std, mup.mup) == (256, 0.08, MuPConfig())


def test_configs_survive_the_round_trip_through_plain_data() -> None:
    mup = GPTConfig(d_model=64, n_layers=2, n_heads=4, parametrization=Parametrization.MUP)
    assert from_dict(GPTConfig, to_dict(mup)) == mup
    assert override(mup, ["mup.output_multiplier=2"]).mup == MuPConfig(output_multiplier=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model = 0 is out of range"),
        ({"n_layers": -1}, "n_layers = -1 is out of range"),
        ({"n_heads": 0}, "n_heads = 0 is out of range"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"max_seq_len": 0}, "max_seq_len = 0"),
        ({"d_ffn": 0}, "d_ffn = 0"),
        ({"n_heads": 5}, "d_model = 64 is not divisible by n_heads = 5; the nearest .* is 4"),
        ({"init_std": 0.0}, "init_std = 0.0 must be above zero"),
        ({"init_std": math.nan}, "init_std = nan is out of range"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps = -1e-05 must be above zero"),
        ({"mup": MuPConfig()}, "mup is set but parametrization is 'standard'"),
    ],
)
def test_bad_values_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**{**to_dict(SMALL), **change})


@pytest.mark.parametrize("field", ["base_d_model", "base_d_ffn", "embedding_multiplier", "output_multiplier"])
def test_bad_mup_values_are_refused_by_name(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        MuPConfig(**{field: 0})


def test_counts_are_those_of_the_named_parameters() -> None:
    shapes = SMALL.parameter_shapes()
    embeddings = math.prod(shapes["wte.weight"]) + math.prod(shapes["wpe.weight"])
    assert sum(math.prod(shape) for shape in shapes.values()) == SMALL.n_params
    assert SMALL.n_params - embeddings == SMALL.n_params_non_embedding
    assert shapes["h.1.mlp.c_fc.weight"] == (96, 64)
    assert len(shapes) == 12 * SMALL.n_layers + 4


def test_flops_conventions_by_hand() -> None:
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 96)
    vocabulary, attention, softmax = 100 * 64, 2 * 16 * 64, 9 * 2 * 4 * 16
    expected = {
        FlopsConvention.CEREBRAS: 6 * matrices + 24 * attention + 10 * vocabulary + softmax,
        FlopsConvention.CEREBRAS_TABLE: 6 * matrices + 12 * attention + 10 * vocabulary + softmax,
        FlopsConvention.SIX_N: 6 * SMALL.n_params,
        FlopsConvention.BENCHMARK: 6 * (matrices + vocabulary) + 6 * attention,
    }
    assert {convention: SMALL.flops_per_token(convention) for convention in FlopsConvention} == expected


def test_flops_at_another_sequence_length() -> None:
    difference = SMALL.flops_per_token(FlopsConvention.BENCHMARK) - SMALL.flops_per_token(
        FlopsConvention.BENCHMARK, seq_len=8
    )
    assert difference == 6 * 2 * 64 * 8
    assert SMALL.training_flops(10) == 10 * SMALL.flops_per_token()
    with pytest.raises(ConfigError, match="seq_len"):
        SMALL.flops_per_token(seq_len=17)


def test_kv_bytes() -> None:
    assert SMALL.kv_bytes_per_token() == 2 * 2 * 64 * 2
    assert SMALL.kv_bytes_per_token(bytes_per_value=4) == 2 * SMALL.kv_bytes_per_token()
