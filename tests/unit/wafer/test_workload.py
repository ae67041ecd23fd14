"""The workload of a transformer: its totals are the model's own formulas."""

from __future__ import annotations

import pytest

from wafergpt.errors import ConfigError
from wafergpt.model.config import FlopsConvention, GPTConfig
from wafergpt.model.family import FAMILY
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.workload import Op, OpKind, TransformerShape, Workload, describe_transformer


def shape_of(config: GPTConfig) -> TransformerShape:
    return TransformerShape(
        name="test",
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads,
        d_ffn=config.ffn_width,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
    )


def planned_flops(workload: Workload) -> float:
    return workload.n_flops(OpKind.MATMUL) + workload.n_flops(OpKind.SOFTMAX)


@pytest.mark.parametrize("name", ["111M", "1.3B", "13B"])
def test_training_is_what_the_model_cards_count(name: str) -> None:
    """Exact: CEREBRAS_TABLE is products, softmax, and 4 V D per token for the embedding, a look-up here."""
    config = FAMILY[name].config
    workload = describe_transformer(shape_of(config), batch=3, seq_len=512)
    n_tokens = 3 * 512
    by_card = config.flops_per_token(FlopsConvention.CEREBRAS_TABLE, 512)
    look_up = 4 * config.vocab_size * config.d_model
    assert workload.n_tokens == n_tokens
    assert workload.n_parameters == config.n_params
    assert planned_flops(workload) == n_tokens * (by_card - look_up)
    causal_once = config.flops_per_token(FlopsConvention.BENCHMARK, 512)
    masked_half = 6 * config.n_layers * config.d_model * 512
    assert workload.n_flops(OpKind.MATMUL) == n_tokens * (causal_once + masked_half)


def test_the_comparison_can_fail() -> None:
    """Planted: a layer that is described once too seldom is seen."""
    config = FAMILY["111M"].config
    short = shape_of(GPTConfig(d_model=768, n_layers=9, n_heads=12))
    workload = describe_transformer(short, batch=1, seq_len=2048)
    expected = 2048 * (config.flops_per_token(FlopsConvention.CEREBRAS_TABLE) - 4 * 50257 * 768)
    assert planned_flops(workload) != expected


def test_backward_is_twice_forward_in_products() -> None:
    workload = describe_transformer(shape_of(FAMILY["111M"].config), batch=2, seq_len=128)
    forward = workload.n_flops(OpKind.MATMUL, "forward")
    assert workload.n_flops(OpKind.MATMUL, "backward") == 2 * forward
    assert workload.n_flops(phase="optimizer") == 14 * FAMILY["111M"].config.n_params


def test_weights_are_read_once_forward_and_once_backward() -> None:
    config = FAMILY["111M"].config
    workload = describe_transformer(shape_of(config), batch=2, seq_len=128, dtype="fp32")
    matrices = config.n_layers * (4 * 768**2 + 2 * 768 * 3072) + config.vocab_size * 768
    for phase in ("forward", "backward"):
        streamed = sum(op.weight_bytes * op.count for op in workload.select(phase=phase))
        assert streamed == 4 * matrices


def test_a_gated_model_counts_three_matrices_and_fewer_keys() -> None:
    """LLaMA 3 8B has 8.03e9 parameters with an untied head of 128256 x 4096; ours is tied."""
    shape = TransformerShape(
        name="8B", n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8,
        d_ffn=14336, vocab_size=128256, max_seq_len=8192, gated_ffn=True,
    )  # fmt: skip
    assert shape.n_parameters + 128256 * 4096 == 8_030_261_248


@pytest.mark.parametrize(("mode", "n_tokens", "n_heads_out"), [("prefill", 2 * 64, 2), ("decode", 2, 2)])
def test_inference_makes_the_logits_of_one_position_a_row(mode: str, n_tokens: int, n_heads_out: int) -> None:
    config = FAMILY["111M"].config
    workload = describe_transformer(shape_of(config), batch=2, seq_len=64, mode=mode, context=200)
    (head,) = (op for op in workload.ops if op.name == "head")
    assert (workload.n_tokens, head.m) == (n_tokens, n_heads_out)
    seen = 200 if mode == "decode" else 64
    assert next(op.n for op in workload.ops if op.name == "attn.scores") == seen
    assert {op.phase for op in workload.ops} == {"forward"}


def test_scaled_repeats_the_work_and_not_the_memory() -> None:
    workload = describe_transformer(shape_of(FAMILY["111M"].config), batch=2, seq_len=64)
    thrice = workload.scaled(3)
    assert thrice.n_flops() == 3 * workload.n_flops()
    assert (thrice.n_samples, thrice.activation_bytes_peak) == (6, workload.activation_bytes_peak)


def test_a_described_step_can_be_priced() -> None:
    report = price(describe_transformer(shape_of(FAMILY["111M"].config), batch=16, seq_len=512))
    assert report.cycles == pytest.approx(sum(report.breakdown_cycles.values()))
    assert report.fits and 0 < report.share_of_peak < 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "sleep"}, "mode 'sleep'"),
        ({"dtype": "int3"}, "dtype 'int3'"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_refused(changed: dict[str, object], message: str) -> None:
    arguments = {"batch": 1, "seq_len": 8} | changed
    with pytest.raises(ConfigError, match=message):
        describe_transformer(shape_of(FAMILY["111M"].config), **arguments)  # type: ignore[arg-type]


def test_an_operator_of_no_phase_is_refused() -> None:
    with pytest.raises(ConfigError, match="phase 'later'"):
        Op(name="x", kind=OpKind.VIEW, phase="later")
