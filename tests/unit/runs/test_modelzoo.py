"""Fourteen Model Zoo files in up to four generations become the published runs; every trap is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo_lab
from wafergpt.config import dump
from wafergpt.config import load as load_config
from wafergpt.errors import ConfigError
from wafergpt.model.mup import Role, rules
from wafergpt.recipes.cerebras_gpt import RECIPES
from wafergpt.runs import modelzoo
from wafergpt.runs.pretrain import named
from wafergpt.training.config import Decay, Precision, TrainConfig
from zoo_lab import FILES

DATA = Path("data")
RELEASES = ("2.10", "2.2", "1.9.1", "1.7")
CASES = [
    (name, release)
    for name, facts in FILES.items()
    for release in RELEASES
    if not (release == "1.7" and facts.mup) and not (release != "2.10" and name == "40M-muP")
]


def tree_of(name: str, release: str) -> dict[str, Any]:
    facts = FILES[name]
    return zoo_lab.trainer_style(facts) if release == "2.10" else zoo_lab.old_style(facts, release)


def run_of(tree: dict[str, Any], folder: Path, **options: Any) -> tuple[str, TrainConfig, str]:
    """(name, config, all notes) of a tree that holds one run."""
    ((name, config),), notes = modelzoo.run_config(zoo_lab.write(tree, folder / "zoo.yaml"), DATA, **options)
    return name, config, "\n".join(notes)


def set_in(tree: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    *path, last = dotted.split("/")
    node: Any = tree
    for key in path:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    return tree


@pytest.mark.parametrize(("name", "release"), CASES)
def test_every_file_becomes_its_published_run(name: str, release: str, tmp_path: Path) -> None:
    found, config, notes = run_of(tree_of(name, release), tmp_path)
    assert found == name
    published = named(name, DATA, vocab_size=50257)
    if (
        FILES[name].cosine and FILES[name].mup
    ):  # the one place where YAML and paper disagree: the YAML is kept
        assert config.schedule.decay is Decay.COSINE and "the paper's table 1 says linear" in notes
        published = replace(published, schedule=replace(published.schedule, decay=Decay.COSINE))
    same = ("model", "data", "optim", "schedule", "batch_size", "micro_batch_size", "precision", "seed")
    assert {key: getattr(config, key) for key in same} == {key: getattr(published, key) for key in same}
    facts, recipe = FILES[name], RECIPES[name.partition("-phase")[0]]
    assert (config.optim.peak_lr, config.batch_size) == (facts.peak, facts.batch)
    assert config.total_tokens in [phase.n_tokens for phase in recipe.phases]
    assert (config.save_every, config.log_every) == (facts.eval_every, 1)
    load_config(TrainConfig, _stored(config, tmp_path))


def _stored(config: TrainConfig, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(dump(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "release", "note"),
    [
        ("1.3B", "2.10", "output_layer_initializer has std 0.0025; a fresh run here starts with 0.00288675"),
        ("13B-phase1", "2.10", "starts with 0.00223607"),
        ("13B-phase1", "2.10", "max_steps = 57,000 ends the run before its schedule of 174,335 steps does"),
        ("13B-phase2", "2.10", "first_step = 38,000 is not in the file; set start_from to it"),
        ("13B-phase1", "1.7", "batch_size = 90 counts one CS-2 system in releases before 1.9; 8 system(s)"),
        ("111M-muP", "1.9.1", "the standard ones, shipped by mistake with the muP files of release 1.9.1"),
        ("111M-muP", "2.2", "muP base sizes 256 and 1024 follow from the scale 0.333333"),
        (
            "111M-muP",
            "2.10",
            "ffn_output_layer_initializer is left out, which the Model Zoo reads as std 0.02",
        ),
        ("40M-muP", "2.10", "output_layer_initializer is left out, which the Model Zoo reads as std 0.02"),
        ("40M-muP", "2.10", "fp16_type = cbfloat16 is Cerebras' own 16-bit format"),
        ("40M-muP", "2.10", "shuffle = false: the file relies on data shuffled before"),
        ("111M", "2.10", "the file's data folders are not read"),
        ("111M", "2.10", "to the uncorrected one on a CS system"),
    ],
)
def test_a_trap_is_named(name: str, release: str, note: str, tmp_path: Path) -> None:
    assert note in run_of(tree_of(name, release), tmp_path)[2]


@pytest.mark.parametrize("name", ["2.7B", "6.7B"])
def test_what_needs_no_remark_gets_none(name: str, tmp_path: Path) -> None:
    """0.0025 is 0.02 / sqrt(64): right for 32 layers."""
    assert "initializer" not in run_of(tree_of(name, "2.10"), tmp_path)[2]


def test_initialisers_that_are_scaled_before_the_file_is_written_are_recognised(tmp_path: Path) -> None:
    """Release 2.2 prints 0.0461880 and 0.0103280 for 111M-muP: sigma / sqrt(m) and sigma / sqrt(2 L m)."""
    _, config, notes = run_of(tree_of("111M-muP", "2.2"), tmp_path)
    table = rules(config.model)
    assert config.model.init_std == 0.08 and "initializer" not in notes
    assert abs(table[Role.HIDDEN_IN].init_std - 0.0461880) < 1e-7
    assert abs(table[Role.ATTENTION_OUT].init_std - 0.0103280) < 1e-7


def test_a_run_that_was_not_published_is_named_by_its_file(tmp_path: Path) -> None:
    tree = set_in(tree_of("111M", "2.10"), "trainer/init/loop/max_steps", 100)
    tree = set_in(tree, "trainer/init/schedulers/0/SequentialLR/schedulers", [{"ConstantLR": {"val": 1e-4}}])
    name, config, _ = run_of(tree, tmp_path)
    assert name == "zoo" and config.schedule.total_steps == 100
    assert (config.schedule.warmup_steps, config.schedule.final_fraction) == (0, 1.0)


def test_several_trainers_are_several_runs(tmp_path: Path) -> None:
    trees = [tree_of(name, "2.10") for name in ("13B-phase1", "13B-phase2")]
    runs, _ = modelzoo.run_config(zoo_lab.write({"trainer": trees}, tmp_path / "13b.yaml"), DATA)
    assert [name for name, _ in runs] == ["13B-phase1", "13B-phase2"]
    assert sum(config.total_tokens for _, config in runs) == RECIPES["13B"].n_tokens


def test_an_unknown_batch_per_system_is_not_guessed(tmp_path: Path) -> None:
    tree = set_in(tree_of("111M", "1.7"), "optimizer/learning_rate/1/steps", 7000)
    tree = set_in(tree, "runconfig/max_steps", 8525)
    with pytest.raises(ConfigError, match="does not say how many there were: give n_systems"):
        run_of(tree, tmp_path)
    assert run_of(tree, tmp_path, n_systems=3)[1].batch_size == 360
    assert run_of(set_in(tree, "runconfig/num_csx", 2), tmp_path)[1].batch_size == 240
    with pytest.raises(ConfigError, match="leave n_systems out"):
        run_of(tree_of("111M", "2.10"), tmp_path, n_systems=2)


def test_single_precision_and_numbers_as_text(tmp_path: Path) -> None:
    tree = set_in(tree_of("111M", "2.10"), "trainer/init/precision/enabled", False)
    tree = set_in(tree, "trainer/init/optimizer/AdamW/eps", "1e-12")  # YAML 1.1 reads 1e-12 as text
    _, config, _ = run_of(tree, tmp_path)
    assert config.precision is Precision.FP32 and config.optim.eps == 1e-12


REFUSED_NEW = [
    (
        "trainer/init/model/position_embedding_type",
        "alibi",
        "position_embedding_type = 'alibi' is not supported",
    ),
    ("trainer/init/model/nonlinearity", "swiglu", "nonlinearity = 'swiglu' is not one of gelu, gelu_new"),
    ("trainer/init/model/name", "llama", "name = 'llama' is not supported"),
    ("trainer/init/model/dropout_rate", 0.1, "dropout of 0.1 is not supported"),
    ("trainer/init/model/share_embedding_weights", False, "share_embedding_weights = false is not supported"),
    ("trainer/init/model/attention_logits_alpha", 2.0, "attention_logits_alpha = 2.0 is not supported"),
    ("trainer/init/model/moe_params", {"num_experts": 4}, "moe_params"),
    (
        "trainer/init/model/hidden_sise",
        768,
        "unknown key 'trainer.init.model.hidden_sise'; did you mean 'hidden_size'",
    ),
    ("trainer/init/model/embeddings_scale", 10, "is a muP setting, but no muP base size or scale is given"),
    (
        "trainer/init/model/mup_base_hidden_size",
        256,
        "mup_base_hidden_size and mup_base_filter_size are needed",
    ),
    ("trainer/init/model/num_heads", 7, "d_model = 768 is not divisible by n_heads = 7"),
    ("trainer/init/model/hidden_size", "wide", "hidden_size: expected a number"),
    ("trainer/init/model/loss_weight", 1.0, "it must be 1/2048"),
    ("trainer/init/model/initializer/a", -1, "it must be -0.04, 2 times std"),
    ("trainer/init/model/initializer/name", "xavier_uniform", "initializer.name = 'xavier_uniform'"),
    ("trainer/init/optimizer", {"SGD": {}}, "'SGD' is not supported; it must be AdamW"),
    ("trainer/init/optimizer/AdamW/correct_bias", False, "correct_bias = false is not supported"),
    ("trainer/init/precision/fp16_type", "float16", "fp16_type = 'float16' is not supported"),
    ("trainer/init/loop/max_steps", 99_999, "goes beyond the schedulers' 9037 steps"),
    ("trainer/init/loop/num_epochs", 3, "num_epochs = 3 is not supported"),
    ("trainer/init/callbacks", [{"WeightCompression": {}}], "'WeightCompression' changes the run"),
    ("trainer/init/sparsity", {"sparsity": 0.75}, "sparsity"),
    ("trainer/init/schedulers/0/SequentialLR/schedulers", [{"StepLR": {}}], "the scheduler 'StepLR'"),
    ("trainer/fit/train_dataloader/data_processor", "LlavaHDF5MapDataProcessor", "data_processor"),
    ("trainer/fit/train_dataloader/use_vsl", True, "use_vsl = true is not supported"),
    (
        "trainer/fit/train_dataloader/vocab_size",
        32000,
        "vocab_size = 32000 is not supported; it must be 50257",
    ),
    ("extra", {}, "unknown key 'extra' beside 'trainer'"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED_NEW, ids=[case[0] for case in REFUSED_NEW])
def test_what_cannot_be_obeyed_is_refused_by_name(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(set_in(tree_of("111M", "2.10"), key, value), tmp_path)
    assert message in str(caught.value) and "zoo.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer/adjust_learning_rate/decoder_kernel", 0.3, "no whole base size"),
        (
            "optimizer/adjust_learning_rate/encoder_kernel",
            0.3,
            "unknown key 'optimizer.adjust_learning_rate.enc",
        ),
        ("model/scale_qk_dot_by_d", False, "scale_qk_dot_by_d must be true under muP"),
        ("model/output_logits_alpha", 1.0, "output_logits_alpha needs the muP base sizes"),
        ("model/mup_base_hidden_size", 256, "are needed together"),
        ("runconfig/mode", "eval", "mode = 'eval' is not supported"),
        ("runconfig/max_stepps", 9, "unknown key 'runconfig.max_stepps'; did you mean 'max_steps'"),
        ("optimizer/learning_rate/0/initial_learning_rate", 1e-5, "a warm-up that starts at 1e-05"),
        (
            "optimizer/learning_rate/0/end_learning_rate",
            5e-3,
            "the warm-up ends at 0.005, the decay starts at",
        ),
    ],
)
def test_old_files_are_refused_by_name_too(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(set_in(tree_of("111M-muP", "2.2"), key, value), tmp_path)
    assert message in str(caught.value)


def test_dropout_that_is_left_out_is_not_zero(tmp_path: Path) -> None:
    tree = tree_of("111M", "2.10")
    del tree["trainer"]["init"]["model"]["dropout_rate"]
    with pytest.raises(ConfigError, match=r"dropout of 0\.1"):
        run_of(tree, tmp_path)


def test_a_wrong_figure_would_be_seen(tmp_path: Path) -> None:
    """Planted: each of these makes the comparison with the published table fail."""
    for key, value in (
        ("trainer/init/model/num_heads", 24),
        ("trainer/init/optimizer/AdamW/eps", 1e-9),
        ("trainer/init/schedulers/0/SequentialLR/schedulers/1/LinearLR/end_learning_rate", 1e-5),
        ("trainer/fit/train_dataloader/batch_size", 121),
    ):
        _, config, _ = run_of(set_in(tree_of("111M", "2.10"), key, value), tmp_path)
        published = named("111M", DATA, vocab_size=50257)
        assert (config.model, config.optim, config.schedule, config.batch_size) != (
            published.model,
            published.optim,
            published.schedule,
            published.batch_size,
        )
