"""From a folder with .bin files to one with safetensors, through the confined process; all or nothing."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from torch_bin_lab import LAYOUTS, archive, loaded_by_torch, same, saved, varied_state
from wafergpt.assets.fetch import fetch
from wafergpt.checkpoints.torch_bin import convert
from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.checkpoints.untrusted.shards import open_tensors
from wafergpt.errors import AssetError, CheckpointError, ConfigError, StorageError

SMALL = {"wte.weight": torch.arange(6.0).reshape(2, 3)}


def folder_with(parent: Path, **files: bytes) -> Path:
    """A model folder; the keys are file names with `__` for the dot."""
    folder = parent / "model"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def assert_nothing_left(source: Path) -> None:
    """Beside the source there is neither a target nor a temporary folder."""
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_converted_with_its_companions(layout: str, tmp_path: Path) -> None:
    data = saved(varied_state(), layout)
    source = folder_with(
        tmp_path, pytorch_model__bin=data, config__json=b"{}", vocab__json=b"{ }", training_args__bin=b"x"
    )
    notes = bin_to_safetensors(source, tmp_path / "new" / "target")
    target = tmp_path / "new" / "target"
    assert {path.name for path in target.iterdir()} == {"model.safetensors", "config.json", "vocab.json"}
    assert (target / "vocab.json").read_bytes() == b"{ }"
    assert same(safetensors.torch.load_file(target / "model.safetensors"), varied_state())
    assert [note for note in notes if "not copied: 'training_args.bin'" in note]
    assert any("read in a process confined by limits, audit hook" in note for note in notes)
    assert {path.name for path in target.parent.iterdir()} == {"target"}


def test_one_file_under_any_name_is_converted(tmp_path: Path) -> None:
    source = folder_with(tmp_path, old__pt=saved(SMALL), config__json=b"{}")
    (tmp_path / "target").mkdir()  # empty: free to use
    bin_to_safetensors(source / "old.pt", tmp_path / "target")
    assert same(safetensors.torch.load_file(tmp_path / "target" / "model.safetensors"), SMALL)
    assert (tmp_path / "target" / "config.json").exists()


@pytest.mark.assets
def test_a_real_file_of_others_is_read_to_the_bit(tmp_path: Path) -> None:
    """microformer-mgm 0.5.8: written on a GPU, its head and its embedding one storage."""
    try:
        published = fetch("microformer-mgm")
    except AssetError as error:
        pytest.skip(str(error))
    bin_to_safetensors(published, tmp_path / "target")
    ours = safetensors.torch.load_file(tmp_path / "target" / "model.safetensors")
    assert len(ours) == 101
    assert same(ours, loaded_by_torch((published / "pytorch_model.bin").read_bytes()))


def sharded(parent: Path, weight_map: dict[str, str]) -> Path:
    shards = {
        f"pytorch_model-0000{n}-of-00002": saved({f"h.{n}.weight": torch.full((2,), n)}) for n in (1, 2)
    }
    index = json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}).encode()
    files = {f"{name}__bin": data for name, data in shards.items()}
    return folder_with(parent, pytorch_model__bin__index__json=index, **files)


HOMES = {f"h.{n}.weight": f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)}


def test_shards_become_shards_with_an_index(tmp_path: Path) -> None:
    bin_to_safetensors(sharded(tmp_path, HOMES), tmp_path / "target")
    with UntrustedFolder(tmp_path / "target") as folder:
        tensors = open_tensors(folder)
        assert tensors.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        assert [tensors.array(f"h.{n}.weight").tolist() for n in (1, 2)] == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map is not an object"),
        ({"a": "../x.bin"}, "is not the name of a shard in this folder"),
        ({"a": "/etc/passwd"}, "is not the name of a shard in this folder"),
        ({"a": "x.bin"}, "x.bin: is missing"),
        (HOMES | {"h.3.weight": HOMES["h.1.weight"]}, "names 'h.3.weight', which .* lacks"),
        ({"h.1.weight": HOMES["h.2.weight"]}, "which 'pytorch_model-00002-of-00002.bin' lacks"),
        ({"x": HOMES["h.2.weight"]}, "does not name 'h.2.weight', which .* has"),
        ({f"w{n}": f"{n}.bin" for n in range(300)}, "names 300 shards, over the limit"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    weight_map: dict[str, str], message: str, tmp_path: Path
) -> None:
    source = sharded(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_what_is_refused_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    source = folder_with(tmp_path, pytorch_model__bin=archive([("a/x", b"")]), config__json=b"{}")
    with pytest.raises(
        CheckpointError, match=r"model/pytorch_model\.bin: holds 'a/x': not a file of weights"
    ):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_over_its_memory_a_file_is_refused(tmp_path: Path) -> None:
    pickle_of_lists = b"\x80\x02" + b"(" * 200_000 + b"N" * 200_000 + b"."
    source = folder_with(tmp_path, pytorch_model__bin=archive([("a/data.pkl", pickle_of_lists)]))
    with pytest.raises(CheckpointError, match=r"needs over 4\.0 MiB of memory to read"):
        bin_to_safetensors(source, tmp_path / "target", memory_bytes=4 * 2**20)
    assert_nothing_left(source)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """48 MiB, half of them read against the grain, with 16 to spend: pieces of 4 and the table."""
    whole = torch.arange(6 * 2**20, dtype=torch.float32).reshape(2048, -1)
    state = {"plain": whole, "turned": whole.T.contiguous().T}
    source = folder_with(tmp_path, pytorch_model__bin=saved(state))
    bin_to_safetensors(source, tmp_path / "target", memory_bytes=16 * 2**20)
    assert same(safetensors.torch.load_file(tmp_path / "target" / "model.safetensors"), state)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, ConfigError, "holds neither pytorch_model.bin nor"),
        ({"model__safetensors": b""}, ConfigError, "holds model.safetensors; it needs no conversion"),
        (
            {"pytorch_model__bin": b"", "pytorch_model__bin__index__json": b""},
            ConfigError,
            "which one is meant",
        ),
        ({"pytorch_model__bin": b""}, CheckpointError, "pytorch_model.bin: is empty"),
        ({"pytorch_model__bin": saved(SMALL), "config__json": bytes(2**20 + 1)}, CheckpointError, "over the"),
    ],
)
def test_folders_that_do_not_fit(
    files: dict[str, bytes], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = folder_with(tmp_path, **files)
    with pytest.raises(error, match=message):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_links_and_taken_targets_are_refused(tmp_path: Path) -> None:
    source = folder_with(tmp_path, real__bin=saved(SMALL))
    (source / "pytorch_model.bin").symlink_to("real.bin")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        bin_to_safetensors(source, tmp_path / "target")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    with pytest.raises(ConfigError, match="exists already"):
        bin_to_safetensors(source / "real.bin", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == ["mine"]


def test_a_target_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    source = folder_with(tmp_path, pytorch_model__bin=saved(SMALL))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the source is intact"):
        bin_to_safetensors(source, tmp_path / "file" / "target")


# A process that reads and cannot be trusted: in place of Python, a script of the shell.
LIARS = {
    "says done, wrote nothing": ("""echo '{"walls": []}'""", "model.safetensors: 0 bytes are too few"),
    "says nothing": ("exit 0", "answer nonsense"),
    "nonsense": ("echo '[1]'", "answer nonsense"),
    "floods": ("exec cat /dev/zero", "ended the process that read it"),
    "fails": ("exit 3", r"ended the process that read it \(code 3\)"),
    "out of time": ("kill -XCPU $$", "took over 1 s of processor time"),
    "cut off": ("kill -BUS $$", "was cut off while it was read"),
    "lines": ("""printf '{"kind": "file", "error": "a\\\\u001b[2J\\\\nb"}'""", r"bin: a\[2Jb$"),
    "a bug": ("""echo '{"kind": "bug", "error": "E"}'""", "please report this: E"),
    "hangs": ("exec sleep 600", "took over 0.2 s to read"),
}


@pytest.mark.parametrize("case", LIARS)
def test_the_child_is_not_trusted(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, message = LIARS[case]
    liar = tmp_path / "bin" / "liar"
    liar.parent.mkdir()
    liar.write_text(f"#!/bin/sh\n{script}\n")
    liar.chmod(liar.stat().st_mode | stat.S_IXUSR)
    source = folder_with(tmp_path / "in", pytorch_model__bin=saved(SMALL))
    monkeypatch.setattr(sys, "executable", str(liar))
    if case == "hangs":
        monkeypatch.setattr(convert, "_WALL_PER_CPU", 0.2)
    with pytest.raises(CheckpointError, match=message):
        bin_to_safetensors(source, source.parent / "target", cpu_s=1)
    assert_nothing_left(source)


def test_a_child_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path, pytorch_model__bin=saved(SMALL))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="the process to read it in cannot be started: No such file"):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path, pytorch_model__bin=saved(SMALL))
    monkeypatch.setattr(
        convert, "_ask", lambda *_: b'{"kind": "storage", "error": "No space left on device"}'
    )
    with pytest.raises(StorageError, match="No space left on device; the source is intact"):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path, pytorch_model__bin=saved(SMALL))

    def meanwhile(ask: Callable[..., bytes]) -> Callable[..., bytes]:
        def asked(*arguments: object) -> bytes:
            os.utime(source / "pytorch_model.bin", ns=(1, 1))
            return ask(*arguments)

        return asked

    monkeypatch.setattr(convert, "_ask", meanwhile(convert._ask))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        bin_to_safetensors(source, tmp_path / "target")
    assert_nothing_left(source)


def test_a_system_without_walls_says_so() -> None:
    assert "allows neither" in convert._wall_note([("limits", "audit hook")])
    assert "allows neither" not in convert._wall_note([("limits", "system-call filter")])
