"""One checkpoint folder, read and verified in a single pass.

Every byte that is handed out was hashed on its way in, from the one buffer it is handed out in: what was
verified is what is used, even if the file changes meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wafergpt.checkpoints.files import CHUNK_BYTES, FileDigest, FileLayer, read_exactly
from wafergpt.checkpoints.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileKind, Manifest
from wafergpt.checkpoints.tensor_file import Array, parse
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.errors import CheckpointError, StorageError
from wafergpt.units import format_bytes

TENSOR_SUFFIX = ".safetensors"
_STEP_NAME = re.compile(r"step-(\d{8,15})(?:\.([1-9]\d{0,5}))?")
# The machine ran short; that says nothing about the checkpoint, and an older one would fare no better.
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A newer checkpoint the loader passed over, and the one-line reason."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint in memory. Arrays are writable and belong to the caller.

    `tensors` maps group ("model", "optimizer") to {name: array}; `documents` and `blobs` map file names.
    `manifest_sha256` stands for every byte of it: the manifest holds the hash of each file.
    """

    step: int
    path: Path
    tensors: dict[str, dict[str, Array]]
    documents: dict[str, Any]
    blobs: dict[str, bytes]
    skipped: tuple[Skipped, ...] = ()
    manifest_sha256: str = ""  # of one that was read


def step_name(step: int, generation: int = 0) -> str:
    """Folder name of a step; a step saved again gets a generation, so that nothing is ever overwritten."""
    return f"step-{step:08d}" + (f".{generation}" if generation else "")


def parse_step_name(name: str) -> tuple[int, int] | None:
    """(step, generation) of a folder name written by `step_name`, else None."""
    match = _STEP_NAME.fullmatch(name)
    if match is None:
        return None
    step, generation = int(match[1]), int(match[2] or 0)
    return (step, generation) if step_name(step, generation) == name else None


def read_checkpoint(
    files: FileLayer, path: Path, groups: Collection[str] | None = None, *, verify_all: bool = True
) -> Checkpoint:
    """Read and verify all of `path`; keep in memory only the named tensor groups (None: all of them).

    Without `verify_all` the files of the other groups are not opened.

    Raises CheckpointError with the reason (without the path), StorageError when the machine lacks handles
    or memory.
    """
    try:
        directory = files.open_directory(path)
    except OSError as error:
        raise _unreadable("the folder", error) from error
    try:
        data = _read_manifest(files, directory)
        manifest = Manifest.from_bytes(data)
        named = parse_step_name(path.name)
        if named is not None and named[0] != manifest.step:
            raise CheckpointError(f"{MANIFEST_NAME} is that of step {manifest.step}")
        available = {
            name.removesuffix(TENSOR_SUFFIX) for name in manifest.files if name.endswith(TENSOR_SUFFIX)
        }
        missing = set(groups or ()) - available
        if missing:
            raise CheckpointError(f"it has no tensors named {', '.join(sorted(missing))}")
        checkpoint = Checkpoint(
            step=manifest.step,
            path=path,
            manifest_sha256=hashlib.sha256(data).hexdigest(),
            tensors={},
            documents={},
            blobs={},
        )
        _read_files(files, directory, manifest, checkpoint, groups, verify_all)
        return checkpoint
    finally:
        files.close(directory)


def _read_files(
    files: FileLayer,
    directory: int,
    manifest: Manifest,
    checkpoint: Checkpoint,
    groups: Collection[str] | None,
    verify_all: bool,
) -> None:
    for name, entry in manifest.files.items():
        group = name.removesuffix(TENSOR_SUFFIX)
        if entry.kind is FileKind.TENSORS and groups is not None and group not in groups:
            if verify_all:
                _read_file(files, directory, name, entry.digest, keep=False)
            continue
        buffer = _read_file(files, directory, name, entry.digest, keep=True)
        if entry.kind is FileKind.TENSORS:
            checkpoint.tensors[group] = parse(buffer, name)
        elif entry.kind is FileKind.BLOB:
            checkpoint.blobs[name] = buffer.tobytes()
        else:
            try:
                checkpoint.documents[name] = parse_json(buffer.tobytes())
            except ValueError as error:
                raise CheckpointError(f"{name}: not valid JSON: {error}") from None


def _read_file(
    files: FileLayer, directory: int, name: str, expected: FileDigest, keep: bool
) -> npt.NDArray[np.uint8]:
    """The whole verified file; with `keep=False` it is only verified, through one small buffer."""
    try:
        handle = files.open_read(directory, name)
        try:
            size_bytes = files.size_bytes(handle)
            if size_bytes != expected.size_bytes:  # before anything is allocated for it
                raise CheckpointError(f"{name} has {size_bytes} bytes, {expected.size_bytes} were written")
            buffer = np.empty(size_bytes if keep else min(size_bytes, CHUNK_BYTES), np.uint8)
            sha256, n_left = hashlib.sha256(), size_bytes
            while n_left:
                window = buffer.data[: min(n_left, buffer.nbytes)]
                for piece in read_exactly(files, handle, window):
                    sha256.update(piece)
                n_left -= window.nbytes
        finally:
            files.close(handle)
    except OSError as error:
        raise _unreadable(name, error) from error
    if sha256.hexdigest() != expected.sha256:
        raise CheckpointError(f"{name} does not match its SHA-256: it was changed or damaged")
    return buffer


def _read_manifest(files: FileLayer, directory: int) -> bytes:
    try:
        handle = files.open_read(directory, MANIFEST_NAME)
        try:
            size_bytes = files.size_bytes(handle)
            if size_bytes > MAX_MANIFEST_BYTES:
                raise CheckpointError(f"{MANIFEST_NAME} has {format_bytes(size_bytes)}, too many for one")
            data = bytearray(size_bytes)
            for _ in read_exactly(files, handle, memoryview(data)):
                pass
        finally:
            files.close(handle)
    except OSError as error:
        raise _unreadable(MANIFEST_NAME, error) from error
    return bytes(data)


def _unreadable(name: str, error: OSError) -> CheckpointError | StorageError:
    if error.errno in _SHORTAGE:
        return StorageError(f"cannot read {name}: {error.strerror}")
    if error.errno == errno.ENOENT:
        return CheckpointError(f"{name} is missing")
    if error.errno == errno.ELOOP:
        return CheckpointError(f"{name} is a symbolic link")
    return CheckpointError(f"{name} cannot be read: {error.strerror or error}")
