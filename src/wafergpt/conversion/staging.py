"""A result is made in a hidden folder beside its place and gets its name when it is proven."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from wafergpt.checkpoints.files import OSFiles, remove_tree, storage_error
from wafergpt.config import require


@contextlib.contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target (so that a rename is atomic), gone afterwards.

    What a killed conversion to the same target left is removed; one that is alive holds a lock on its own.
    """
    parent = target.parent.resolve()
    require(parent.is_dir(), f"the folder '{target.parent}' does not exist")
    prefix = f".{target.name}.converting-"
    remove_leftovers(parent, prefix)
    staging = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        staging.mkdir()
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise storage_error(f"cannot write in '{parent}'", error, "nothing was changed") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield staging
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):
            remove_tree(OSFiles(), staging)


def remove_leftovers(parent: Path, prefix: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(prefix):
            with contextlib.suppress(OSError):
                descriptor = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(OSFiles(), parent / name)
                finally:
                    os.close(descriptor)
