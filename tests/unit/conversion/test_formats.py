"""Formats are told apart by what is in them, names by whether they are paths; errors say what is missing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model_lab import stored_model
from wafergpt.checkpoints.huggingface.folder import write_folder
from wafergpt.checkpoints.native_model import write_run
from wafergpt.conversion import formats
from wafergpt.conversion.convert import convert
from wafergpt.conversion.formats import Format, detect, locate, read, sha256_of
from wafergpt.errors import CheckpointError, ConfigError


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    "names, expected",
    [
        (("manifest.json", "config.json", "model.safetensors"), Format.NATIVE),
        (("config.yaml", "checkpoints"), Format.NATIVE),
        (("step-00000003",), Format.NATIVE),
        (("config.json", "model.safetensors", "pytorch_model.bin"), Format.HUGGING_FACE),
        (("config.json", "model.safetensors.index.json", "checkpoints"), Format.HUGGING_FACE),
        (("config.json", "pytorch_model.bin"), Format.TORCH_BIN),
        (("config.json", "pytorch_model.bin.index.json"), Format.TORCH_BIN),
    ],
)
def test_folders(names: tuple[str, ...], expected: Format, tmp_path: Path) -> None:
    assert detect(folder(tmp_path / "m", *names)) is expected


@pytest.mark.parametrize(
    "start, expected", [(b"GGUF\x03\0\0\0\0", Format.GGUF), (b"\x89HDF\r\n\x1a\n", Format.MODEL_ZOO)]
)
def test_files(start: bytes, expected: Format, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(start)
    assert detect(tmp_path / "m") is expected


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"\x10")
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (folder(tmp_path / "empty"), "holds no checkpoint: neither checkpoints/"),
        (folder(tmp_path / "half", "config.json"), "has a config.json but no model.safetensors"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "m.safetensors", "neither a GGUF file nor .*; give the folder it lies in"),
        (tmp_path / "pipe", "neither a file nor a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            detect(path)


def test_paths_and_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(name: str, **options: object) -> Path:
        asked.append((name, options))
        return folder(tmp_path / f"cache{len(asked)}", "config.json", "pytorch_model.bin")

    monkeypatch.setattr(formats, "resolve", resolve)
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "runs")
    assert locate("runs") == Path("runs") and locate(str(tmp_path)) == tmp_path
    for missing in ("runs/typo", "./typo", "/none", "typo.gguf", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(missing)
    with pytest.raises(ConfigError, match="a revision goes with a hub name; 'runs' is a path"):
        locate("runs", "main")
    assert asked == []
    assert locate("cerebras/Cerebras-GPT-111M", "v1") == tmp_path / "cache1"
    assert locate("gpt2", old_weights=True) == tmp_path / "cache3"
    assert asked == [
        ("cerebras/Cerebras-GPT-111M", {"revision": "v1"}),
        ("gpt2", {"revision": None}),
        ("gpt2", {"revision": None, "old_weights": True}),
    ]


def test_reading_gives_the_model_and_its_files(tmp_path: Path) -> None:
    stored = stored_model()
    write_run(stored, tmp_path / "run")
    write_folder(stored, tmp_path / "hf", max_shard_bytes=60_000)
    native, foreign = read(tmp_path / "run"), read(tmp_path / "hf")
    assert native.format is Format.NATIVE and [f.name for f in native.files] == ["model.safetensors"]
    assert foreign.format is Format.HUGGING_FACE and len(foreign.files) > 1
    for opened in (native, foreign):
        assert opened.model.config == stored.config
        assert sorted(opened.model.arrays) == sorted(stored.arrays)


def test_old_bin_files_are_only_converted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds an old .bin file: run `wafergpt convert .*/m NEW`"):
        read(folder(tmp_path / "m", "config.json", "pytorch_model.bin"))


def test_sha256_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "CHUNK_BYTES", 3)
    (tmp_path / "a").write_bytes(b"ten bytes.")
    assert sha256_of((tmp_path / "a",)) == {"a": hashlib.sha256(b"ten bytes.").hexdigest()}


def test_an_old_bin_folder_is_converted(tmp_path: Path) -> None:
    """Through the confined reader, and no trace of the folder it wrote in between."""
    stored = stored_model()
    write_folder(stored, tmp_path / "old")
    tensors = safetensors.torch.load_file(tmp_path / "old" / "model.safetensors")
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    certificate = convert(str(tmp_path / "old"), tmp_path / "new")
    assert certificate.same and certificate.source.format == "torch-bin"
    assert list(certificate.source.sha256) == ["pytorch_model.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
