"""`.mdl` files of every release read into the same arrays; ours are laid out as the current release's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch.utils._pytree as pytree
import yaml

import hdf5_lab
from hdf5_lab import TINY, arrays_of, old_keys, write_legacy, zoo_state
from wafergpt.checkpoints.modelzoo.mdl import read_mdl
from wafergpt.checkpoints.modelzoo.mdl_writer import write_mdl
from wafergpt.checkpoints.modelzoo.model_section import write_model
from wafergpt.checkpoints.stored_model import StoredModel, check_arrays
from wafergpt.errors import CheckpointError, ConfigError, StorageError
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer

STANDARD = GPTConfig(d_model=32, n_layers=2, n_heads=2, d_ffn=80, vocab_size=61, max_seq_len=16)


def assert_holds(model: StoredModel, config: GPTConfig, arrays: dict[str, np.ndarray]) -> None:
    assert model.config == config
    check_arrays(config, model.arrays)
    for name, array in arrays.items():
        assert model.arrays[name].dtype == np.float32 and np.array_equal(model.arrays[name], array), name


@pytest.mark.parametrize("config", [TINY, STANDARD], ids=["mup", "standard"])
def test_what_is_written_reads_back_bit_for_bit(config: GPTConfig, tmp_path: Path) -> None:
    arrays = arrays_of(config)
    notes = write_mdl(StoredModel(config=config, arrays=arrays), tmp_path / "a.mdl")
    assert notes == ("a .mdl file of ours holds no optimiser state, so a Model Zoo run starts a new one",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mdl", "a.yaml"]
    assert_holds(read_mdl(tmp_path / "a.mdl"), config, arrays)
    with h5py.File(tmp_path / "a.mdl", "a") as file:
        del file.attrs["wafergpt_config"]
    again = read_mdl(tmp_path / "a.mdl")  # now by the YAML beside it, which says the same
    assert_holds(again, config, arrays)
    assert any("a.yaml" in note for note in again.notes)


def test_a_yaml_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mine")
    notes = write_mdl(StoredModel(config=STANDARD, arrays=arrays_of(STANDARD)), tmp_path / "a.mdl")
    assert "'a.yaml' was there already and was left as it is" in notes
    assert (tmp_path / "a.yaml").read_text() == "mine"


def test_tokenizer_and_chat_template_go_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["In the beginning was the word, and the word was short. " * 40], 270)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = StoredModel(
        config=STANDARD, arrays=arrays_of(STANDARD), tokenizer=tokenizer, chat_template=template
    )
    write_mdl(model, tmp_path / "a.mdl")
    again = read_mdl(tmp_path / "a.mdl")
    assert again.tokenizer is not None and again.tokenizer.sha256 == tokenizer.sha256
    assert again.chat_template == template and again.notes == ()
    for name, data, rule in (
        ("wafergpt_tokenizer", b'{"model": {"type": "WordPiece"}}', "wafergpt_tokenizer': "),
        ("wafergpt_tokenizer", b"[" * 1000, "wafergpt_tokenizer': "),
        ("wafergpt_chat_template", b"{{ x.__class__ }}", "chat template: "),
        ("wafergpt_chat_template", bytes(100_000), "is not a row of at most"),
    ):
        write_mdl(model, tmp_path / "b.mdl")
        with h5py.File(tmp_path / "b.mdl", "a") as file:
            del file[name]
            file[name] = np.frombuffer(data, np.uint8)
        with pytest.raises(CheckpointError) as caught:
            read_mdl(tmp_path / "b.mdl")
        assert rule in str(caught.value) and "b.mdl" in str(caught.value)


def test_columns_first_arrays_are_written_as_rows(tmp_path: Path) -> None:
    """Hugging Face's Conv1D weights come as transposed views."""
    arrays = {name: np.asfortranarray(array) for name, array in arrays_of(STANDARD).items()}
    write_mdl(StoredModel(config=STANDARD, arrays=arrays), tmp_path / "a.mdl")
    assert_holds(read_mdl(tmp_path / "a.mdl"), STANDARD, arrays)


def test_the_layout_is_that_of_cerebras_pytorch(tmp_path: Path) -> None:
    """What `cerebras.pytorch.storage.load` (2.9) does, step by step, on torch's own pytree."""
    arrays = arrays_of(TINY)
    write_mdl(StoredModel(config=TINY, arrays=arrays), tmp_path / "a.mdl")
    loaded: dict[str, Any] = {}
    with h5py.File(tmp_path / "a.mdl") as file:
        assert file.attrs["__version__"] == 0.5 and file.attrs["__SUCCESS__"]
        spec = pytree.treespec_loads(json.loads(file.attrs["__spec__"])[1])
        (names,) = pytree.tree_unflatten(range(spec.num_leaves), spec).values()
        for name in names:
            key = f"model.{name}"
            metadata = json.loads(file.attrs[f"{key}.__metadata__"])
            own = pytree.treespec_loads(metadata["__spec__"][1])
            assert own.unflatten([0]) == {key: 0} and metadata["__objects__"] == [key]
            described = metadata[f"{key}.__metadata__"]
            if described.get("__LINKED__"):
                loaded[name] = described["key"]
                continue
            data = file[key]
            assert data.attrs["__NUMPY__"] and data.attrs["__TYPE__"] == described["__TYPE__"]
            assert described["dtypes"] == ["torch.float32"] and described["shapes"] == [list(data.shape)]
            loaded[name] = data[...]
    state = zoo_state(TINY, arrays)
    assert loaded.pop("model.lm_head.weight") == "model.model.embedding_layer.word_embeddings.weight"
    state.pop("model.lm_head.weight")
    assert loaded.keys() == state.keys()
    assert all(np.array_equal(loaded[name], array) for name, array in state.items())
    q = loaded["model.transformer_decoder.layers.1.self_attn.proj_k_dense_layer.weight"]
    assert np.array_equal(q, arrays["h.1.attn.c_attn.weight"][48:96])


@pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": True}], ids=["plain", "gzip"])
def test_files_of_every_release_read_alike(prefix: str, old: bool, options: dict, tmp_path: Path) -> None:
    arrays = arrays_of(STANDARD)
    state: dict[str, Any] = zoo_state(STANDARD, arrays, prefix)
    state = old_keys(state) if old else state
    state |= {
        "optimizer.state.0.exp_avg": np.zeros(3),
        "optimizer.state.1.exp_avg": np.zeros(3),
        "global_step": 17,
    }
    model = read_mdl(write_legacy(tmp_path / "a.mdl", state, **options), config=STANDARD)
    assert_holds(model, STANDARD, arrays)
    notes = "\n".join(model.notes)
    assert "left in the file: global_step (1), optimizer (2)" in notes and model.provenance["step"] == 17
    assert "the head" in notes and ("ln_f.bias'" in notes and "is the same as" in notes) == old
    assert not (tmp_path / "marker").exists()


def test_lz4_and_half_precision_as_the_real_files_have_them(tmp_path: Path) -> None:
    arrays = arrays_of(STANDARD)
    state = zoo_state(STANDARD, arrays)
    state.pop("model.lm_head.weight")
    with h5py.File(tmp_path / "a.mdl", "w") as file:
        for key, array in state.items():
            if ".norm" in key:  # bfloat16 is stored as 16-bit integers that say so
                bits = (array.view(np.uint32) >> 16).astype("i2" if array.ndim else "u2")
                file[key] = bits
                file[key].attrs["is_bfloat16"] = True
            elif key.endswith("bias"):
                file[key] = array.astype("f2")
            else:
                hdf5_lab.write_lz4(file, key, array, (16, 8))
        file.attrs["__version__"] = 0.4
    model = read_mdl(tmp_path / "a.mdl", config=STANDARD)
    for name, array in arrays.items():
        if ".ln_" in name or name.startswith("ln_"):
            array = ((array.view(np.uint32) >> 16) << 16).view(np.float32)
        elif name.endswith("bias"):
            array = array.astype("f2").astype("f4")
        assert np.array_equal(model.arrays[name], array), name


def _damage(path: Path, what: str) -> None:
    with h5py.File(path, "a") as file:
        if what == "a missing tensor":
            del file["model.transformer_decoder.layers.1.norm3.bias"]
        elif what == "a foreign tensor":
            file["model.transformer_decoder.layers.0.adapter.weight"] = np.zeros(3)
        elif what == "a wrong shape":
            del file["model.transformer_decoder.norm.bias"]
            file["model.transformer_decoder.norm.bias"] = np.zeros(31, "f4")
        elif what == "an untied head":
            file["model.lm_head.weight"][0, 0] += 1
        elif what == "double precision":
            del file["model.transformer_decoder.norm.bias"]
            file["model.transformer_decoder.norm.bias"] = np.zeros(32)
        elif what == "integers":
            del file["model.transformer_decoder.norm.bias"]
            file["model.transformer_decoder.norm.bias"] = np.zeros(32, "i2")
        elif what == "another depth":
            file["model.transformer_decoder.layers.2.norm3.bias"] = np.zeros(32, "f4")
        elif what == "a different twin":
            file["model.ln_f.bias"] = np.full(32, 9, "f4")
        elif what == "half a file":
            file.attrs["__version__"] = 0.5
        elif what == "a link":
            file["model.extra"] = h5py.ExternalLink("other.h5", "/data")
        elif what == "no model":
            for key in list(file):
                del file[key]
            file["optimizer.state"] = np.zeros(3)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a missing tensor", "has no tensor 'transformer_decoder.layers.1.norm3.bias' (ours: h.1.ln_2.bias)"),
        ("a foreign tensor", "holds 'model.transformer_decoder.layers.0.adapter.weight', which a GPT"),
        ("a wrong shape", "norm.bias' has shape [31], the configuration needs [32]"),
        (
            "an untied head",
            "'model.lm_head.weight' differs from 'model.embedding_layer.word_embeddings.weight'",
        ),
        ("double precision", "holds float64; read are float32, float16 and bfloat16"),
        ("integers", "holds int16; read are float32, float16 and bfloat16"),
        ("another depth", "holds 3 layers, the configuration says 2"),
        ("a different twin", "differs from"),
        ("half a file", "was not written to its end: __SUCCESS__ is not set"),
        ("a link", "is a soft or external link"),
        ("no model", "holds no model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(what: str, message: str, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "a.mdl", zoo_state(STANDARD, arrays_of(STANDARD)))
    _damage(path, what)
    with pytest.raises(CheckpointError) as caught:
        read_mdl(path, config=STANDARD)
    assert message in str(caught.value) and "a.mdl" in str(caught.value) and "\n" not in str(caught.value)


def test_nan_is_refused_when_it_is_read(tmp_path: Path) -> None:
    arrays = arrays_of(STANDARD)
    arrays["h.1.mlp.c_fc.bias"][3] = np.nan
    path = write_legacy(tmp_path / "a.mdl", zoo_state(STANDARD, arrays))
    model = read_mdl(path, config=STANDARD)
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn\.ffn\.0\.linear_layer\.bias' holds nan"):
        model.arrays["h.1.mlp.c_fc.bias"]


def test_a_configuration_is_needed_and_checked(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "a.mdl", zoo_state(STANDARD, arrays_of(STANDARD)))
    with pytest.raises(CheckpointError, match=r"put the YAML it was trained with beside it as 'a\.yaml'"):
        read_mdl(path)
    beside = tmp_path / "a.yaml"
    beside.write_text(yaml.safe_dump({"model": write_model(STANDARD)}))
    assert read_mdl(path).config == STANDARD
    with pytest.raises(CheckpointError, match=r"has shape \[80, 32\], the configuration needs \[96, 32\]"):
        read_mdl(path, config=replace(STANDARD, d_ffn=96))
    beside.write_text(yaml.safe_dump({"model": {**write_model(STANDARD), "nonlinearity": "relu"}}))
    with pytest.raises(ConfigError, match=r"a\.yaml: model\.nonlinearity = 'relu' is not one of"):
        read_mdl(path)
    with h5py.File(path, "a") as file:
        file.attrs["wafergpt_config"] = '{"d_model": 1e999}'
    with pytest.raises(CheckpointError, match="'wafergpt_config' is damaged"):
        read_mdl(path)


def test_a_lying_configuration_costs_nothing(tmp_path: Path) -> None:
    """10^9 layers are refused by the file's own count, before any table of them is made."""
    path = write_legacy(tmp_path / "a.mdl", zoo_state(STANDARD, arrays_of(STANDARD)))
    with pytest.raises(CheckpointError, match="holds 2 layers, the configuration says 1000000000"):
        read_mdl(path, config=replace(STANDARD, n_layers=10**9))


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StoredModel(config=STANDARD, arrays=arrays_of(STANDARD))
    write_mdl(model, tmp_path / "a.mdl")
    before = (tmp_path / "a.mdl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match=r"cannot write '.*a\.mdl': No space left"):
        write_mdl(replace(model, arrays=arrays_of(STANDARD, seed=1)), tmp_path / "a.mdl")
    assert (tmp_path / "a.mdl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mdl", "a.yaml"]


FUZZER = """
import random, resource, sys
from pathlib import Path
from wafergpt.checkpoints.modelzoo.mdl import read_mdl
from wafergpt.errors import WaferGPTError

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
path, n = Path(sys.argv[1]), int(sys.argv[2])
original, loaded = path.read_bytes(), 0
for seed in range(n):
    choose, data = random.Random(seed), bytearray(original)
    for _ in range(choose.choice((1, 1, 4, 32))):
        data[choose.randrange(min(len(data), 200_000))] = choose.randrange(256)
    if seed % 5 == 0:
        del data[choose.randrange(len(data)) :]
    path.write_bytes(data)
    try:
        model = read_mdl(path)
        for name in model.arrays:
            model.arrays[name]
        loaded += 1
    except WaferGPTError as error:
        assert str(path) in str(error) and "\\n" not in str(error), error
print(loaded)
"""


@pytest.mark.parametrize("n", [200, pytest.param(5_000, marks=pytest.mark.long)])
def test_damaged_bytes_end_in_one_line_or_in_numbers(n: int, tmp_path: Path) -> None:
    """In a process of its own: what is parsed is parsed by a C library."""
    write_mdl(StoredModel(config=STANDARD, arrays=arrays_of(STANDARD)), tmp_path / "a.mdl")
    command = [sys.executable, "-c", FUZZER, str(tmp_path / "a.mdl"), str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < n  # some damage hits weights only, some is noticed
