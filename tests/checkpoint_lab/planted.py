"""Planted bugs: each is a mistake some checkpoint writer has made; the named check must see it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint_lab import checks
from checkpoint_lab.checks import KEEP, ROOT, Outcome, StoreFactory
from wafergpt.checkpoints.checkpoint import Checkpoint
from wafergpt.checkpoints.files import (
    FileDigest,
    FileLayer,
    OSFiles,
    remove_tree,
    sync_directory,
    write_synced,
)
from wafergpt.checkpoints.manifest import MANIFEST_NAME, Manifest, ManifestEntry
from wafergpt.checkpoints.native import CheckpointStore

# -- in the file layer


class Layer:
    """Passes every call on to the layer below."""

    def __init__(self, below: FileLayer) -> None:
        self.below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


class NoFsync(Layer):
    def fsync(self, handle: int) -> None:
        pass


class NoFileFsync(Layer):
    directory = -1

    def open_directory(self, path: Path) -> int:
        self.directory = self.below.open_directory(path)
        return self.directory

    def fsync(self, handle: int) -> None:
        if handle == self.directory:
            self.below.fsync(handle)


class NoDirectoryFsync(NoFileFsync):
    def fsync(self, handle: int) -> None:
        if handle != self.directory:
            self.below.fsync(handle)


class IgnoresShortWrite(Layer):
    def write(self, handle: int, data: memoryview) -> int:
        self.below.write(handle, data)
        return data.nbytes


class IgnoresWriteError(Layer):
    def write(self, handle: int, data: memoryview) -> int:
        with contextlib.suppress(OSError):
            return self.below.write(handle, data)
        return data.nbytes


class IgnoresCloseError(Layer):
    def close(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            self.below.close(handle)


class RetriesFsync(Layer):
    def fsync(self, handle: int) -> None:
        try:
            self.below.fsync(handle)
        except OSError:
            self.below.fsync(handle)


class NoLock(Layer):
    def exclusive(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class FollowsSymlinks(OSFiles):
    def open_read(self, directory: int, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)


class OpensAnything(OSFiles):
    """Follows a link in place of the checkpoint's folder."""

    def open_directory(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        assert stat.S_ISDIR(os.fstat(handle).st_mode)
        return handle


def layered(layer: Callable[[FileLayer], Layer]) -> StoreFactory:
    return lambda files: CheckpointStore(ROOT, keep=KEEP, files=layer(files))


# -- in the store


class RenamesFirst(CheckpointStore):
    def _publish(self, step: int, contents: Any) -> Path:
        temporary, target = self._temporary_path(step), self._free_path(step)
        self.files.mkdir(temporary)
        self.files.rename(temporary, target)
        self.files.rmdir(target)
        self._write(target, step, contents)
        sync_directory(self.files, self.root)
        return target


class ManifestFirst(CheckpointStore):
    """Writes in place, the manifest before the files it vouches for."""

    def _publish(self, step: int, contents: Any) -> Path:
        target = self._free_path(step)
        self.files.mkdir(target)
        entries = {}
        for name, (kind, chunks) in contents.items():
            data = b"".join(chunks())
            digest = write_synced(checks.FakeDisk(), Path("/") / name, [memoryview(data)])
            entries[name] = ManifestEntry(kind=kind, digest=digest)
        manifest = Manifest(step=step, files=entries).to_bytes()
        write_synced(self.files, target / MANIFEST_NAME, [memoryview(manifest)])
        for name, (_, chunks) in contents.items():
            write_synced(self.files, target / name, chunks())
        sync_directory(self.files, target)
        sync_directory(self.files, self.root)
        return target


class DeletesOldFirst(CheckpointStore):
    def _publish(self, step: int, contents: Any) -> Path:
        self._discard(self.paths())
        return super()._publish(step, contents)


class WrongDigest(CheckpointStore):
    """Vouches for the bytes after the first piece only."""

    def _write(self, folder: Path, step: int, contents: Any) -> None:
        self.files.mkdir(folder)
        entries = {}
        for name, (kind, chunks) in contents.items():
            size_bytes = write_synced(self.files, folder / name, chunks()).size_bytes
            rest = write_synced(checks.FakeDisk(), Path("/rest"), list(chunks())[1:])
            entries[name] = ManifestEntry(
                kind=kind, digest=FileDigest(size_bytes=size_bytes, sha256=rest.sha256)
            )
        manifest = Manifest(step=step, files=entries).to_bytes()
        write_synced(self.files, folder / MANIFEST_NAME, [memoryview(manifest)])
        sync_directory(self.files, folder)


class TemporaryElsewhere(CheckpointStore):
    def _temporary_path(self, step: int) -> Path:
        return self.root.parent / super()._temporary_path(step).name


class CollectsByName(CheckpointStore):
    """Keeps the newest by name, whether they verify or not."""

    def _remove_old(self, newest: Path) -> None:
        self._discard(self.paths()[self.keep :])


class CollectsInPlace(CheckpointStore):
    def _discard(self, paths: list[Path]) -> None:
        for path in paths:
            remove_tree(self.files, path)


class NoReadBack(CheckpointStore):
    def _read_back(self, path: Path) -> None:
        pass


class LeavesLeftovers(CheckpointStore):
    def _remove_leftovers(self) -> None:
        pass


class Overwrites(CheckpointStore):
    """Removes an existing checkpoint of the same step to make room for its successor."""

    def _free_path(self, step: int) -> Path:
        path = self.root / f"step-{step:08d}"
        self._discard([path])
        return path


class TakesTheFirst(CheckpointStore):
    """Loads the newest by name or gives up."""

    def load_newest(self, groups: Any = None) -> Checkpoint:
        return self.load(self.paths()[0], groups)


def stored(store: type[CheckpointStore]) -> StoreFactory:
    return lambda files: store(ROOT, keep=KEEP, files=files)


# -- which check sees which bug

Check = Callable[[StoreFactory], Outcome]


def crashes(make_store: StoreFactory) -> Outcome:
    return checks.explore_crashes(make_store, n_states=1500, seed=1)


def errors(make_store: StoreFactory) -> Outcome:
    return checks.sweep_errors(make_store, seed=1)


PLANTED: dict[str, tuple[StoreFactory, Check]] = {
    "no fsync at all": (layered(NoFsync), crashes),
    "no fsync of files": (layered(NoFileFsync), crashes),
    "no fsync of directories": (layered(NoDirectoryFsync), crashes),
    "rename before the files are written": (stored(RenamesFirst), crashes),
    "manifest first, in place": (stored(ManifestFirst), crashes),
    "old ones deleted first": (stored(DeletesOldFirst), crashes),
    "same step overwritten": (stored(Overwrites), crashes),
    "old ones removed in place": (stored(CollectsInPlace), crashes),
    "leftovers never removed": (stored(LeavesLeftovers), crashes),
    "digest of the wrong bytes": (stored(WrongDigest), crashes),
    "temporary folder in another file system": (stored(TemporaryElsewhere), crashes),
    "short write ignored": (layered(IgnoresShortWrite), errors),
    "ENOSPC ignored": (layered(IgnoresWriteError), errors),
    "close error ignored": (layered(IgnoresCloseError), errors),
    "fsync retried after EIO": (layered(RetriesFsync), errors),
    "never read back": (stored(NoReadBack), checks.flipped_writes),
    "two writers at once": (layered(NoLock), checks.interleave_writers),
    "last good one collected": (stored(CollectsByName), checks.retention),
}
