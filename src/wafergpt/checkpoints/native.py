"""The checkpoint store: folders that are either complete and verified or not there at all.

Saving goes: temporary folder -> every file written and fsynced -> manifest -> fsync of the folder ->
rename -> fsync of the parent -> read back and verified -> only then are old checkpoints removed. Loading
takes the newest that verifies and says what it passed over. There is no pointer file that could go stale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from wafergpt.checkpoints.checkpoint import (
    TENSOR_SUFFIX,
    Checkpoint,
    Skipped,
    parse_step_name,
    read_checkpoint,
    step_name,
)
from wafergpt.checkpoints.files import (
    FileLayer,
    Kind,
    OSFiles,
    make_directories,
    remove_tree,
    storage_error,
    sync_directory,
    write_synced,
)
from wafergpt.checkpoints.manifest import (
    MANIFEST_NAME,
    MAX_STEP,
    FileKind,
    Manifest,
    ManifestEntry,
    check_names,
)
from wafergpt.checkpoints.tensor_file import Array, check_savable, serialized
from wafergpt.config import require
from wafergpt.errors import CheckpointError, NonFiniteError, StorageError

__all__ = ["Checkpoint", "CheckpointStore", "Skipped", "load_checkpoint"]

SAVE_LOCK_NAME = ".save.lock"
CHECKPOINTS_NAME = "checkpoints"  # the folder of checkpoints inside a run folder
_TEMPORARY_PREFIX = ".tmp-"
_TRASH_PREFIX = ".trash-"
# A reader starts over when retention removes the folder it is reading; each time something newer is there.
_MAX_RESTARTS = 100

_log = logging.getLogger(__name__)

Chunks = Callable[[], Iterator[memoryview]]
Contents = dict[str, tuple[FileKind, Chunks]]


class CheckpointStore:
    """Checkpoints of one run in `root`; `keep` of the newest verified ones survive a save.

    One process writes at a time (RunLockedError for the second); any number may read meanwhile.
    """

    def __init__(self, root: Path, keep: int = 3, files: FileLayer | None = None) -> None:
        require(keep >= 1, f"keep = {keep} is out of range; at least one checkpoint must be kept")
        self.root = Path(root).resolve()
        self.keep = keep
        self.files: FileLayer = files or OSFiles()
        self._verified: set[Path] = set()  # published or verified by this object
        self._anchored = False

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Array]],
        documents: Mapping[str, Any],
        blobs: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Write, verify and publish the state of `step`; returns its folder, durable when this returns.

        `tensors` maps group to {name: array} (one safetensors file each), `documents` a .json name to plain
        data, `blobs` a file name to bytes. Raises NonFiniteError (nothing was written), StorageError (nothing
        was published, earlier checkpoints are intact, the next save needs no restart), RunLockedError.
        """
        contents = _contents(step, tensors, documents, blobs or {})
        try:
            self._anchor()
            with self.files.exclusive(self.root / SAVE_LOCK_NAME):
                self._remove_leftovers()
                path = self._publish(step, contents)
                self._remove_old(path)
        except StorageError:
            raise
        except OSError as error:
            action = f"cannot save the checkpoint of step {step} in '{self.root}'"
            raise storage_error(action, error, "earlier checkpoints are intact") from error
        return path

    def paths(self) -> list[Path]:
        """Folders named as checkpoints, newest first (by step, then generation); none is verified yet.

        Raises StorageError when the folder cannot be read.
        """
        try:
            if self.files.kind(self.root) is not Kind.DIRECTORY:
                return []
            listed = self.files.list_directory(self.root)
        except OSError as error:
            raise storage_error(f"cannot read '{self.root}'", error, "nothing was changed") from error
        names = ((parse_step_name(name), name) for name in listed)
        found = sorted(((key, name) for key, name in names if key is not None), reverse=True)
        return [self.root / name for _, name in found]

    def load_newest(self, groups: Collection[str] | None = None, *, verify_all: bool = True) -> Checkpoint:
        """The newest checkpoint that verifies; `skipped` says what newer ones were passed over and why.

        `groups` limits which tensor groups are kept in memory (all files are verified all the same, unless
        `verify_all` is false).
        Raises CheckpointError when there is none, StorageError when the machine lacks file handles or memory.
        """
        for _ in range(_MAX_RESTARTS):
            skipped: list[Skipped] = []
            for path in self.paths():
                try:
                    checkpoint = read_checkpoint(self.files, path, groups, verify_all=verify_all)
                except CheckpointError as error:
                    if path not in self.paths():
                        break  # removed by the writer while it was read: look again
                    skipped.append(Skipped(path=path, reason=str(error)))
                else:
                    return dataclasses.replace(checkpoint, skipped=tuple(skipped))
            else:
                raise CheckpointError(self._nothing_found(skipped))
        raise CheckpointError(f"checkpoints in '{self.root}' vanish faster than they can be read")

    def load(
        self, path: Path, groups: Collection[str] | None = None, *, verify_all: bool = True
    ) -> Checkpoint:
        """This very checkpoint, verified. Raises CheckpointError, StorageError; see `load_newest`."""
        try:
            return read_checkpoint(self.files, Path(path).resolve(), groups, verify_all=verify_all)
        except CheckpointError as error:
            raise CheckpointError(f"cannot load checkpoint '{path}': {error}") from error

    def verify(self, path: Path) -> None:
        """Check every byte without keeping it in memory. Raises CheckpointError, StorageError."""
        self.load(path, groups=())

    def _nothing_found(self, skipped: list[Skipped]) -> str:
        if not skipped:
            return f"there is no checkpoint in '{self.root}'"
        reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped)
        return f"no checkpoint in '{self.root}' can be loaded: {reasons}"

    def _anchor(self) -> None:
        """Make `root` itself survive a power cut, whoever created it and the run folder around it."""
        make_directories(self.files, self.root)
        if not self._anchored:
            for parent in list(self.root.parents)[:2]:
                with contextlib.suppress(PermissionError):  # above the run folder not all need be ours
                    sync_directory(self.files, parent)
            self._anchored = True

    def _publish(self, step: int, contents: Contents) -> Path:
        """The commit sequence. Raises OSError; what it leaves then is at most a temporary folder."""
        temporary = self._temporary_path(step)
        target = self._free_path(step)
        try:
            self._write(temporary, step, contents)
            self.files.rename(temporary, target)
            sync_directory(self.files, self.root)
            self._read_back(target)
        except BaseException as error:
            self._remove(temporary)
            if isinstance(error, OSError):  # even if the rename took effect: what failed is not there
                self._discard([target])
            raise
        self._verified.add(target)
        return target

    def _write(self, folder: Path, step: int, contents: Contents) -> None:
        self.files.mkdir(folder)
        entries = {}
        for name, (kind, chunks) in contents.items():
            digest = write_synced(self.files, folder / name, chunks())
            entries[name] = ManifestEntry(kind=kind, digest=digest)
        manifest = Manifest(step=step, files=entries).to_bytes()
        write_synced(self.files, folder / MANIFEST_NAME, [memoryview(manifest)])
        sync_directory(self.files, folder)

    def _read_back(self, path: Path) -> None:
        try:
            read_checkpoint(self.files, path, groups=())
        except CheckpointError as error:
            reason = f"the new checkpoint reads back damaged ({error}); it was discarded"
            raise StorageError(f"cannot trust the storage of '{self.root}': {reason}") from error

    def _temporary_path(self, step: int) -> Path:
        # In the same folder, so in the same file system: only there is a rename atomic.
        return self.root / f"{_TEMPORARY_PREFIX}{step_name(step)}-{os.getpid()}-{secrets.token_hex(4)}"

    def _free_path(self, step: int) -> Path:
        taken = [key for path in self.paths() if (key := parse_step_name(path.name)) and key[0] == step]
        return self.root / step_name(step, 1 + max(generation for _, generation in taken) if taken else 0)

    def _remove_old(self, newest: Path) -> None:
        """Retention: the `keep` newest verified checkpoints stay, and `newest` whatever its step."""
        kept: list[tuple[int, int]] = []
        victims = []
        try:
            for path in self.paths():
                key = parse_step_name(path.name)
                assert key is not None
                superseded = bool(kept) and kept[-1][0] == key[0]
                if path != newest and (len(kept) >= self.keep or superseded):
                    victims.append(path)
                elif path == newest or self._verifies(path):
                    kept.append(key)
        except OSError as error:
            _log.warning("old checkpoints in '%s' were not examined: %s", self.root, error)
            return
        self._discard(victims)

    def _verifies(self, path: Path) -> bool:
        if path not in self._verified:
            try:
                self.verify(path)
            except (CheckpointError, StorageError):
                return False
            self._verified.add(path)
        return True

    def _discard(self, paths: list[Path]) -> None:
        """Remove folders so that no crash leaves one half there under its own name. Best effort, reported."""
        trash: list[Path] = []
        try:
            for path in paths:
                self._verified.discard(path)
                if self.files.kind(path) is not Kind.MISSING:
                    trash.append(self.root / f"{_TRASH_PREFIX}{path.name}-{secrets.token_hex(4)}")
                    self.files.rename(path, trash[-1])
            if trash:
                sync_directory(self.files, self.root)
        except OSError as error:
            _log.warning("old checkpoints in '%s' stay until the next save: %s", self.root, error)
            return
        for path in trash:
            self._remove(path)

    def _remove_leftovers(self) -> None:
        """Temporary and condemned folders of dead writers; the lock is held, so no living one has any."""
        prefixes = (_TEMPORARY_PREFIX, _TRASH_PREFIX)
        leftovers = [name for name in self.files.list_directory(self.root) if name.startswith(prefixes)]
        if leftovers:
            sync_directory(self.files, self.root)  # a condemned folder must not come back under its old name
        for name in leftovers:
            self._remove(self.root / name)

    def _remove(self, path: Path) -> None:
        try:
            remove_tree(self.files, path)
        except OSError as error:
            _log.warning("the leftover '%s' stays until the next save: %s", path, error)


def load_checkpoint(
    directory: Path, groups: Collection[str] | None = None, *, verify_all: bool = True
) -> Checkpoint:
    """Load from a run folder, a folder of checkpoints (newest verified), or one checkpoint folder.

    Raises CheckpointError, StorageError; see `CheckpointStore.load_newest`.
    """
    path, files = Path(directory).resolve(), OSFiles()
    if files.kind(path / MANIFEST_NAME) is not Kind.MISSING or parse_step_name(path.name):
        return CheckpointStore(path.parent).load(path, groups, verify_all=verify_all)
    for root in (path / CHECKPOINTS_NAME, path):
        store = CheckpointStore(root)
        if store.paths():
            return store.load_newest(groups, verify_all=verify_all)
    raise CheckpointError(
        f"'{directory}' holds no checkpoint" if path.exists() else f"'{directory}' does not exist"
    )


def _contents(
    step: int,
    tensors: Mapping[str, Mapping[str, Array]],
    documents: Mapping[str, Any],
    blobs: Mapping[str, bytes],
) -> Contents:
    """What to write, all checked before the disk is touched."""

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"cannot save: {reason}")

    if type(step) is not int or not 0 <= step <= MAX_STEP:
        refuse(f"step {step!r} is not a whole number from 0 to {MAX_STEP}")
    contents: Contents = {}
    check_names([*(group + TENSOR_SUFFIX for group in tensors), *documents, *blobs], refuse)
    for group, arrays in tensors.items():
        check_savable(group, arrays)
        contents[group + TENSOR_SUFFIX] = FileKind.TENSORS, functools.partial(serialized, arrays)
    plain = {name: (FileKind.DOCUMENT, _document(name, value)) for name, value in documents.items()}
    plain |= {name: (FileKind.BLOB, bytes(data)) for name, data in blobs.items()}
    for name, (kind, data) in plain.items():
        if name.endswith(TENSOR_SUFFIX) or (kind is FileKind.DOCUMENT and not name.endswith(".json")):
            refuse(f"'{name}' has the wrong suffix for a {kind.value}")
        contents[name] = kind, functools.partial(iter, [memoryview(data)])
    return contents


def _document(name: str, value: Any) -> bytes:
    _check_plain(name, value)
    try:
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")
    except ValueError as error:
        raise NonFiniteError(f"{name} holds nan or infinity; nothing was saved ({error})") from None


def _check_plain(where: str, value: Any) -> None:
    """Refuse what JSON would silently change: keys that are not text, tuples, subclasses."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where}: the key {key!r} is not text")
            _check_plain(f"{where}.{key}", item)
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_plain(f"{where}[{index}]", item)
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(
            f"{where}: {type(value).__name__} is not plain data (use dict, list, str, int, float, bool)"
        )
