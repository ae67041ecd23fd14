"""Folders read and written: round trips, number formats, shards, memory, failures."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from model_lab import MUP, STANDARD, TANH, stored_model
from wafergpt.checkpoints.files import OSFiles
from wafergpt.checkpoints.huggingface.folder import read_folder, write_folder
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.errors import CheckpointError, ConfigError, NonFiniteError, StorageError
from wafergpt.model.config import GPTConfig

safetensors = pytest.importorskip("safetensors.numpy")
Array = np.ndarray


def assert_same(a: StoredModel, b: StoredModel) -> None:
    assert a.config == b.config
    assert list(a.arrays) == list(b.arrays) == list(a.config.parameter_shapes())
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name], err_msg=name)


def tensors_of(folder: Path) -> dict[str, Array]:
    return safetensors.load_file(folder / "model.safetensors")  # type: ignore[no-any-return]


def rewrite(folder: Path, tensors: dict[str, Array]) -> Path:
    safetensors.save_file(
        {n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_folder(stored_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("config", [STANDARD, TANH, dataclasses.replace(TANH, d_ffn=37)])
@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 10**9])
def test_round_trip(config: GPTConfig, max_shard_bytes: int, tmp_path: Path) -> None:
    model = stored_model(config)
    digests = write_folder(model, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    back = read_folder(tmp_path / "model")
    assert_same(model, back)
    assert back.tokenizer is not None and model.tokenizer is not None
    assert back.tokenizer.encode("the weather") == model.tokenizer.encode("the weather")
    assert back.chat_template == model.chat_template
    assert set(digests) == {path.name for path in (tmp_path / "model").iterdir()}
    n_shards = sum(name.endswith(".safetensors") for name in digests)
    assert (n_shards == 1) == (max_shard_bytes == 10**9)
    if max_shard_bytes == 1:
        assert n_shards == len(model.arrays)


def test_the_tied_head_is_stored_once_and_the_metadata_is_torchs(written: Path) -> None:
    assert set(tensors_of(written)) == {f"transformer.{name}" for name in TANH.parameter_shapes()}
    with open(written / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt"}


def test_mup_is_folded(tmp_path: Path) -> None:
    model = stored_model(MUP)
    write_folder(model, tmp_path / "model")
    assert_same(fold(model), read_folder(tmp_path / "model"))


def test_arrays_are_writable_views_of_the_file(written: Path) -> None:
    before = (written / "model.safetensors").read_bytes()
    array = read_folder(written).arrays["h.0.attn.c_attn.weight"]
    assert array.base is not None and array.flags.f_contiguous  # the file's [in, out], seen as [out, in]
    array += 1
    assert (written / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_types_round_to_nearest(dtype: str, bits: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = stored_model()
    write_folder(model, tmp_path / "model", dtype=dtype)
    back = read_folder(tmp_path / "model")
    assert any("read as float32" in note for note in back.notes)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
    for name, array in model.arrays.items():
        expected = torch.from_numpy(array).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(back.arrays[name], expected)
        assert np.all(np.abs(back.arrays[name] - array) <= np.abs(array) * 2.0**-bits + 2.0**-25)


@pytest.mark.parametrize("ties", [0x3F808000, 0x3F818000, 0x3F808001, 0x00008000])
def test_bfloat16_ties_go_to_even(ties: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = stored_model()
    model.arrays["ln_f.bias"][:] = np.array([ties], np.uint32).view(np.float32)
    write_folder(model, tmp_path / "model", dtype="bfloat16")
    expected = torch.from_numpy(model.arrays["ln_f.bias"]).bfloat16().float().numpy()
    np.testing.assert_array_equal(read_folder(tmp_path / "model").arrays["ln_f.bias"], expected)


def test_float64_weights_are_read_as_float32(written: Path) -> None:
    rewrite(written, {name: tensor.astype(np.float64) for name, tensor in tensors_of(written).items()})
    back = read_folder(written)
    assert_same(stored_model(), back)
    assert any("F64" in note for note in back.notes)


def test_headless_names_head_and_old_buffers(written: Path) -> None:
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors_of(written).items()}
    tensors |= {
        "lm_head.weight": tensors["wte.weight"].copy(),
        "h.0.attn.bias": np.ones((1, 1, 24, 24), bool),
    }
    back = read_folder(rewrite(written, tensors))
    assert_same(stored_model(), back)
    assert any("lm_head.weight dropped" in n for n in back.notes) and any("buffers" in n for n in back.notes)


def test_a_head_of_its_own_is_refused(written: Path) -> None:
    tensors = tensors_of(written)
    head = tensors["transformer.wte.weight"].copy()
    head[-1, -1] += 1e-3  # the last value of the last row: all of it is compared
    rewrite(written, tensors | {"lm_head.weight": head})
    with pytest.raises(CheckpointError, match=r"model.safetensors: 'lm_head.weight' differs from"):
        read_folder(written)


def test_integers_for_weights_are_refused(written: Path) -> None:
    tensors = tensors_of(written)
    tensors["transformer.ln_f.bias"] = np.zeros(32, np.int64)
    with pytest.raises(CheckpointError, match=r"'transformer.ln_f.bias' holds I64"):
        read_folder(rewrite(written, tensors))


def test_a_nan_is_refused_when_the_array_is_read(written: Path) -> None:
    tensors = tensors_of(written)
    tensors["transformer.h.1.ln_2.bias"][3] = np.nan
    arrays = read_folder(rewrite(written, tensors)).arrays
    with pytest.raises(CheckpointError, match="NaN"):
        arrays["h.1.ln_2.bias"]


def test_only_old_weights_names_the_way(written: Path) -> None:
    (written / "model.safetensors").rename(written / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: .*wafergpt convert"):
        read_folder(written)


def test_no_config_no_weights_no_folder(tmp_path: Path, written: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"it has no config.json"):
        read_folder(tmp_path / "empty")
    (written / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        read_folder(written)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_folder(tmp_path / "missing")


def test_config_errors_name_the_files_path(written: Path) -> None:
    document = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(document | {"n_embd": 64}))
    with pytest.raises(
        CheckpointError, match=r"tensor 'transformer.wte.weight' has shape \[261, 32\], config"
    ):
        read_folder(written)
    (written / "config.json").write_text(json.dumps(document | {"rope_theta": 1}))
    with pytest.raises(
        CheckpointError, match=re.escape(str(written / "config.json")) + ": unknown key 'rope_theta'"
    ):
        read_folder(written)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = stored_model(dataclasses.replace(TANH, vocab_size=200))
    write_folder(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match="do not belong together"):
        read_folder(tmp_path / "model")


def test_without_a_tokenizer(tmp_path: Path) -> None:
    write_folder(dataclasses.replace(stored_model(), tokenizer=None, chat_template=None), tmp_path / "model")
    back = read_folder(tmp_path / "model")
    assert back.tokenizer is None and back.chat_template is None
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] is None


def test_vocab_and_merges_alone_give_the_same_tokenizer(written: Path) -> None:
    (written / "tokenizer.json").unlink()
    tokenizer, original = read_folder(written).tokenizer, stored_model().tokenizer
    assert tokenizer is not None and original is not None
    assert tokenizer.encode("the weather and\n") == original.encode("the weather and\n")


def test_sampling_settings_are_noted_and_our_own_folder_needs_no_note(written: Path) -> None:
    assert read_folder(written).notes == ()
    (written / "generation_config.json").write_text('{"do_sample": true, "top_k": 5, "use_cache": true}')
    assert read_folder(written).notes == ("generation_config.json: do_sample, top_k not used",)


# -- writing fails, and leaves nothing


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_folder_is_not_touched_but_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="exists already"):
        write_folder(stored_model(), tmp_path / "full")
    assert left_in(tmp_path) == ["full"] and left_in(tmp_path / "full") == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    write_folder(stored_model(), tmp_path / "empty")
    assert "config.json" in left_in(tmp_path / "empty")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_are_not_written(value: float, tmp_path: Path) -> None:
    model = stored_model()
    model.arrays["h.1.mlp.c_proj.weight"][-1, -1] = value
    with pytest.raises(NonFiniteError, match=r"'h.1.mlp.c_proj.weight'"):
        write_folder(model, tmp_path / "model")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("bfloat16", 3.4e38)])
def test_values_too_large_for_a_half_type(dtype: str, value: float, tmp_path: Path) -> None:
    model = stored_model()
    model.arrays["wpe.weight"][0, 0] = value
    with pytest.raises(ConfigError, match=f"too large for {dtype}"):
        write_folder(model, tmp_path / "model", dtype=dtype)
    assert left_in(tmp_path) == []


def test_wrong_options_and_arrays(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'int8' is not one of"):
        write_folder(stored_model(), tmp_path / "model", dtype="int8")
    with pytest.raises(ConfigError, match="max_shard_bytes"):
        write_folder(stored_model(), tmp_path / "model", max_shard_bytes=0)
    model = stored_model()
    short = dataclasses.replace(model, arrays={**model.arrays, "ln_f.bias": np.zeros(31, np.float32)})
    with pytest.raises(CheckpointError, match=r"'ln_f.bias' has shape \(31,\)"):
        write_folder(short, tmp_path / "model")
    assert left_in(tmp_path) == []


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: OSFiles, handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(OSFiles, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_folder(stored_model(), tmp_path / "model")
    assert left_in(tmp_path) == []


def test_one_array_at_a_time(tmp_path: Path) -> None:
    """No array is still held when the next one is made."""
    model, alive, most = stored_model(), [0], [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= self.base is None

    def make(name: str) -> Array:
        array = np.ndarray.__new__(Counted, model.arrays[name].shape, np.float32)
        array[...] = model.arrays[name]
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return array

    makers = {name: (lambda name=name: make(name)) for name in model.arrays}  # type: ignore[misc]
    write_folder(
        dataclasses.replace(model, arrays=LazyArrays(makers)), tmp_path / "model", max_shard_bytes=30_000
    )
    assert most[0] == 1
