"""What may be opened in a folder nobody vouches for, and what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from wafergpt.checkpoints.untrusted import folder as folder_module
from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.errors import CheckpointError


def put(path: Path, data: bytes = b'{"a": 1}') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refused(path: Path, name: str, rule: str) -> None:
    with UntrustedFolder(path) as folder, pytest.raises(CheckpointError) as failure:
        folder.read_bytes(name, 100)
    assert rule in str(failure.value)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    put(tmp_path / "config.json")
    with UntrustedFolder(tmp_path) as folder:
        assert folder.names() == ("config.json",)
        assert folder.has("config.json")
        assert not folder.has("Config.json")
        assert folder.read_bytes("config.json", 8) == b'{"a": 1}'
        assert folder.read_json("config.json") == {"a": 1}


def test_a_link_to_the_folder_is_the_users_choice(tmp_path: Path) -> None:
    put(tmp_path / "real" / "config.json")
    (tmp_path / "link").symlink_to("real")
    with UntrustedFolder(tmp_path / "link") as folder:
        assert folder.read_json("config.json") == {"a": 1}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b"])
def test_what_is_not_a_name_is_refused(name: str, tmp_path: Path) -> None:
    refused(tmp_path, name, "is not the name of a file")


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (link("/etc/passwd"), "symbolic link"),
        (link("other"), "symbolic link"),
        (link("nowhere"), "symbolic link"),
        (link("../../blobs/abc"), "symbolic link"),
        (os.mkfifo, "but a FIFO"),
        (os.mkdir, "but a folder"),
        (listen, "but a socket"),
        (lambda path: os.link(path.parent / "other", path), "2 hard links"),
        (lambda path: put(path, b"x" * 101), "over the limit"),
        (lambda path: None, "is missing"),
    ],
)
def test_what_is_not_a_plain_file_is_refused(
    make: Callable[[Path], object], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    put(tmp_path / "other")
    make(tmp_path / "config.json")
    refused(tmp_path, "config.json", rule)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_device_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "config.json", 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("this container may not make devices")
    refused(tmp_path, "config.json", "but a device")


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "config.json")
    put(tmp_path / "Config.json")
    put(tmp_path / "caf\u00e9.json")
    put(tmp_path / "cafe\u0301.json")
    refused(tmp_path, "config.json", "differ in case only")
    refused(tmp_path, "caf\u00e9.json", "differ in case only")


def hub_cache(root: Path, target: str = "../../blobs/0123abcd") -> Path:
    put(root / "models--a--b" / "blobs" / "0123abcd")
    snapshot = root / "models--a--b" / "snapshots" / "f00d"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(target)
    return snapshot


def test_the_hub_caches_own_links_are_followed(tmp_path: Path) -> None:
    with UntrustedFolder(hub_cache(tmp_path)) as folder:
        assert folder.read_json("config.json") == {"a": 1}


@pytest.mark.parametrize(
    "target", ["../../blobs/../secret", "../../../secret", "../../blobs", "../../blobs/."]
)
def test_other_links_in_a_hub_cache_are_refused(target: str, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, target)
    put(tmp_path / "models--a--b" / "secret")
    put(tmp_path / "secret")
    refused(snapshot, "config.json", "symbolic link")


def test_a_blob_that_is_a_link_is_refused(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    blob = tmp_path / "models--a--b" / "blobs" / "0123abcd"
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    refused(snapshot, "config.json", "symbolic link")


def test_a_file_changed_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "config.json")
    with UntrustedFolder(tmp_path) as folder:
        file = folder.open("config.json")
        file.check_unchanged()
        with path.open("ab") as more:
            more.write(b"x")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            file.check_unchanged()
        os.truncate(path, 3)
        with pytest.raises(CheckpointError, match="ends early"):
            file.read_at(0, memoryview(bytearray(8)))


def test_a_sparse_giant_is_refused(tmp_path: Path) -> None:
    os.truncate(put(tmp_path / "model.safetensors"), 1 << 40)
    refused(tmp_path, "model.safetensors", "is sparse")


def test_what_is_not_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="archives are not unpacked"):
        UntrustedFolder(put(tmp_path / "model.zip"))
    for path in (tmp_path / "missing", "a\0b"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            UntrustedFolder(path)
    monkeypatch.setattr(folder_module, "MAX_FILES", 0)
    with pytest.raises(CheckpointError, match="over 0 files"):
        UntrustedFolder(tmp_path)


def test_handles_are_closed(tmp_path: Path) -> None:
    put(tmp_path / "config.json")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        UntrustedFolder(tmp_path).read_json("config.json")
        UntrustedFolder(tmp_path).open("config.json")
    assert len(os.listdir("/proc/self/fd")) == before
