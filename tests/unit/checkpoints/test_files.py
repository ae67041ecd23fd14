"""Single files replaced atomically, and the small file layer."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from checkpoint_lab.fake_disk import Crash, FakeDisk
from wafergpt.checkpoints.files import (
    Kind,
    OSFiles,
    make_directories,
    remove_temporaries,
    remove_tree,
    sync_directory,
    write_atomic,
)
from wafergpt.errors import StorageError

TARGET = Path("/fake/config.yaml")
OLD, NEW = b"old " * 400, b"new " * 500


def disk_with_old() -> FakeDisk:
    disk = FakeDisk()
    make_directories(disk, TARGET.parent)
    write_atomic(TARGET, OLD, disk)
    return disk


def content(disk: FakeDisk) -> bytes:
    handle = disk.open_read(disk.open_directory(TARGET.parent), TARGET.name)
    buffer = bytearray(disk.size_bytes(handle))
    disk.read_into(handle, memoryview(buffer))
    return bytes(buffer)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_atomic(path, b"one")
    write_atomic(path, b"")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["report.md"]


def test_power_cuts_leave_old_or_new() -> None:
    rng, seen = random.Random(1), set()
    start, disk = disk_with_old().n_calls, disk_with_old()
    write_atomic(TARGET, NEW, disk)
    for number in range(start, disk.n_calls + 1):
        disk = disk_with_old()
        disk.crash_at = number
        returned = False
        try:
            write_atomic(TARGET, NEW, disk)
            returned = True
        except Crash:
            pass
        for _ in range(30):
            found = content(disk.after_crash(rng))
            assert found in ((NEW,) if returned else (OLD, NEW))
            seen.add(found)
    assert seen == {OLD, NEW}


def test_every_error_leaves_the_old_file_and_no_litter() -> None:
    start, whole = disk_with_old().n_calls, disk_with_old()
    write_atomic(TARGET, NEW, whole)
    for number in range(start, whole.n_calls):
        disk = disk_with_old()
        disk.fail_at = {number: (errno.ENOSPC, False)}
        with pytest.raises(StorageError, match=r"cannot write '/fake/config\.yaml': No space left on device"):
            write_atomic(TARGET, NEW, disk)
        renamed = ("rename", TARGET.parent) in [(call, path.parent) for call, path in disk.log[start:number]]
        assert content(disk) == (NEW if renamed else OLD)
        assert disk.list_directory(TARGET.parent) == [TARGET.name]


def test_errors_carry_their_number(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        write_atomic(tmp_path / "missing" / "file", b"")
    assert caught.value.errno == errno.ENOENT


def test_kinds_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    kinds = {
        name: OSFiles().kind(tmp_path / name) for name in ("file", "link", "fifo", "none", "file/below", "")
    }
    expected = [Kind.FILE, Kind.OTHER, Kind.OTHER, Kind.MISSING, Kind.MISSING, Kind.DIRECTORY]
    assert list(kinds.values()) == expected


def test_only_regular_files_are_opened_for_reading(tmp_path: Path) -> None:
    files = OSFiles()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    directory = files.open_directory(tmp_path)
    n_open = len(os.listdir("/proc/self/fd"))
    for name in ("folder", "link", "fifo", "none"):
        with pytest.raises(OSError):
            files.open_read(directory, name)
    assert len(os.listdir("/proc/self/fd")) == n_open
    files.close(directory)
    with pytest.raises(OSError):
        files.open_directory(tmp_path / "link")


def test_a_file_system_without_directory_fsync_is_accepted() -> None:
    disk = disk_with_old()
    disk.fail_at = {disk.n_calls + 1: (errno.EINVAL, False)}
    sync_directory(disk, TARGET.parent)
    assert not disk.handles


def test_directories_another_process_makes_first_are_accepted() -> None:
    disk = FakeDisk()
    disk.mkdir(Path("/a"))
    disk.before_call = {disk.n_calls + 3: lambda: disk.mkdir(Path("/a/b"))}
    make_directories(disk, Path("/a/b/c"))
    assert disk.kind(Path("/a/b/c")) is Kind.DIRECTORY


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(OSFiles(), tmp_path / "nothing")


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "config.yaml", b"kept")
    left = tmp_path / ".config.yaml.tmp-1234-00c0ffee"
    others = [tmp_path / name for name in (".config.yaml.tmp-1234", "config.tmp-1-00c0ffee", ".lock")]
    for path in [left, *others]:
        path.write_bytes(b"half")
    remove_temporaries(tmp_path)
    assert not left.exists() and all(path.exists() for path in others)
    assert (tmp_path / "config.yaml").read_bytes() == b"kept"
    remove_temporaries(tmp_path / "missing")


def test_temporaries_are_named_as_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that dies before its rename leaves a file that `remove_temporaries` knows."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OSFiles, "rename", die)
    monkeypatch.setattr(OSFiles, "unlink", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "config.yaml", b"new")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []
