"""Our shapes in the Zoo's words and back; a file that holds only a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import zoo_lab
from hdf5_lab import TINY
from wafergpt.checkpoints.modelzoo.config import is_zoo_tree, read_model_config
from wafergpt.checkpoints.modelzoo.model_section import read_model, write_model
from wafergpt.checkpoints.modelzoo.section import Section
from wafergpt.errors import ConfigError
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.family import FAMILY

shapes = st.builds(
    GPTConfig,
    d_model=st.sampled_from([32, 48, 96]),
    n_layers=st.integers(1, 5),
    n_heads=st.sampled_from([1, 2, 4]),
    d_ffn=st.sampled_from([None, 64, 100]),
    vocab_size=st.integers(1, 60_000),
    max_seq_len=st.integers(1, 4096),
    activation=st.sampled_from(Activation),
    init_std=st.floats(1e-3, 0.5),
    layer_norm_eps=st.sampled_from([1e-5, 1e-12]),
)
mup = st.builds(
    MuPConfig,
    base_d_model=st.integers(1, 512),
    base_d_ffn=st.integers(1, 512),
    embedding_multiplier=st.floats(0.1, 20),
    output_multiplier=st.floats(0.1, 5),
)


def back(config: GPTConfig) -> tuple[GPTConfig, list[str]]:
    """Through YAML text, as a file would hold it."""
    section = Section(yaml.safe_load(yaml.safe_dump(write_model(config))), "model", [])
    found = read_model(section)
    section.finish()
    assert (found.dropout, found.loss_scaling, found.loss_weight) == (0.0, "num_tokens", 1.0)
    return found.config, section.notes


@given(shapes, st.none() | mup)
def test_every_shape_survives_the_zoos_words(config: GPTConfig, block: MuPConfig | None) -> None:
    if block is not None:
        config = replace(config, parametrization=Parametrization.MUP, mup=block)
    assert back(config) == (config, [])


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_survives(name: str) -> None:
    assert back(FAMILY[name].config) == (FAMILY[name].config, [])


@pytest.mark.parametrize("release", ["2.10", "2.2", "1.7"])
def test_a_whole_run_gives_its_model(release: str, tmp_path: Path) -> None:
    facts = zoo_lab.FILES["111M"]
    tree = zoo_lab.trainer_style(facts) if release == "2.10" else zoo_lab.old_style(facts, release)
    assert is_zoo_tree(tree)
    config, _ = read_model_config(zoo_lab.write(tree, tmp_path / "a.yaml"))
    assert config == FAMILY["111M"].config


def test_old_mup_without_its_optimiser_is_read_with_a_remark(tmp_path: Path) -> None:
    """Beside a .mdl the `model` alone is enough: what it computes does not depend on learning rates."""
    tree = zoo_lab.old_style(zoo_lab.FILES["256M-muP"], "2.2")
    config, notes = read_model_config(zoo_lab.write({"model": tree["model"]}, tmp_path / "a.yaml"))
    assert config == FAMILY["256M-muP"].config
    assert any("assuming an output multiplier of 1" in note for note in notes)


def test_several_models_in_one_file_are_refused(tmp_path: Path) -> None:
    body = {"trainer": {"init": {"model": write_model(TINY)}}}
    path = zoo_lab.write({"trainer": [body, body]}, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: holds 2 models; one is needed"):
        read_model_config(path)
    assert not is_zoo_tree({"model": {}, "optim": {}}) and not is_zoo_tree([])
