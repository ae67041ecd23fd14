"""A folder that appears complete or not at all: built beside its place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from wafergpt.errors import ConfigError, StorageError

# What a data folder may hold. Anything else was put there by someone, and --overwrite does not take it away.
_OF_A_FOLDER = ("tokenizer.json", "train", "held_out")
_OF_A_SIDE = ("manifest.json", "documents.jsonl", "shard-*.bin")


@contextlib.contextmanager
def published(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `final` when the block ends without an exception.

    Leftovers of killed runs beside `final` are removed; a run that is alive holds a lock and is left alone.
    Raises ConfigError if `final` holds anything (with `overwrite`: anything but prepared data), StorageError
    if the disk is full or read-only.
    """
    prefix = f".{final.name}.partial-"
    _put_back(final, prefix)
    if final.exists() and not _is_empty_folder(final):
        _refuse_what_is_there(final, overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final.parent, prefix)
        work = final.parent / f"{prefix}{os.getpid()}"
        work.mkdir()
        lock = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"cannot write beside '{final}': {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work
        _sync_folders(work)
        _place(work, final, overwrite)
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is None:
            raise
        raise StorageError(f"cannot write '{final}': {error.strerror}; nothing was left behind") from None
    finally:
        os.close(lock)
        shutil.rmtree(work, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _refuse_what_is_there(final: Path, overwrite: bool) -> None:
    if not final.is_dir():
        raise ConfigError(f"'{final}' is a file, not a folder; choose another name")
    if not overwrite:
        raise ConfigError(f"'{final}' exists already; choose another folder, remove it or pass --overwrite")
    sides = [final / side for side in _OF_A_FOLDER[1:] if (final / side).is_dir()]
    for folder, expected in [(final, _OF_A_FOLDER), *((side, _OF_A_SIDE) for side in sides)]:
        for path in sorted(folder.iterdir()):
            if not any(path.match(pattern) for pattern in expected):
                raise ConfigError(
                    f"'{final}' is not replaced: it holds '{path.relative_to(final)}', which is not"
                    f" prepared data; choose another folder or remove it"
                )


def sync_file(path: Path) -> None:
    """Flush a written file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _place(work: Path, final: Path, overwrite: bool) -> None:
    old = work.with_name(work.name + ".old")
    replaced = overwrite and final.exists()
    if replaced:
        os.rename(final, old)
    try:
        os.rename(work, final)
    except OSError as error:
        if replaced:
            os.rename(old, final)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(f"'{final}' was written by another run in the meantime") from None
        raise
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(final: Path, prefix: str) -> None:
    """Give `final` its name back if a run was killed between moving it aside and replacing it."""
    if final.exists():
        return
    for old in final.parent.glob(prefix + "*.old"):
        process = old.name.removeprefix(prefix).removesuffix(".old")
        if not Path(f"/proc/{process}").exists():  # a living run is between its two renames
            with contextlib.suppress(OSError):
                os.rename(old, final)
            return


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for entry in parent.glob(prefix + "*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry)
            finally:
                os.close(descriptor)


def _sync_folders(work: Path) -> None:
    for folder in [*(path for path in work.rglob("*") if path.is_dir()), work]:
        _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
