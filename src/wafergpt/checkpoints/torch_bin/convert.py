"""`pytorch_model.bin` -> `model.safetensors`: the parent of the confined process, and what stands around it.

The parent opens the file and an empty target, hands both handles to the child, kills it when its time is
over, and trusts nothing it did: what was written goes through the same checks as any foreign safetensors
file before the folder gets its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wafergpt.checkpoints.files import (
    OSFiles,
    make_directories,
    remove_tree,
    storage_error,
    sync_directory,
    write_synced,
)
from wafergpt.checkpoints.untrusted.folder import OpenFile, UntrustedFolder
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.checkpoints.untrusted.shards import INDEX_NAME, MAX_SHARDS, SINGLE_NAME, open_tensors
from wafergpt.checkpoints.untrusted.tensors import map_tensors
from wafergpt.errors import CheckpointError, ConfigError, StorageError, shown
from wafergpt.units import MIB

BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
DEFAULT_MEMORY_BYTES = 256 * MIB  # beyond the mapped file: the table of tensors and pieces of 4 MiB
# Processor time: two minutes and one second for each 64 MiB; a 2020s core copies and checks over 500 MiB/s.
_CPU_S, _BYTES_PER_CPU_S = 120, 64 * MIB
_WALL_PER_CPU = 10  # a slow disk is not an attack
_MAX_REPLY_BYTES = 64 * 1024
_MAX_INDEX_BYTES = 8 * MIB
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\.bin")
# What a model's folder holds beside its weights, and the most that is copied of it.
_COMPANIONS = {
    "config.json": MIB,
    "generation_config.json": MIB,
    "tokenizer.json": 64 * MIB,
    "tokenizer_config.json": MIB,
    "special_tokens_map.json": MIB,
    "added_tokens.json": MIB,
    "vocab.json": 16 * MIB,
    "merges.txt": 16 * MIB,
    "chat_template.jinja": MIB,
    "README.md": MIB,
    "LICENSE": MIB,
}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One file to convert; `names` are the tensors that an index promises in it (None: no index)."""

    source: str
    target: str
    names: frozenset[str] | None = None


def bin_to_safetensors(
    source: Path, target_dir: Path, *, memory_bytes: int | None = None, cpu_s: int | None = None
) -> tuple[str, ...]:
    """Convert a folder with `pytorch_model.bin` (or its shards), or one such file, to a new folder.

    `target_dir` must not exist, or be empty; it gets `model.safetensors` (or shards and an index) with the
    same tensors, names and dtypes, and copies of config, tokenizer and model card. It appears whole or not
    at all. Returns notes for the user, one line each. Reading happens in a child process (see `confine`)
    that may use `memory_bytes` (256 MiB) beyond the mapped file and `cpu_s` of processor time per file
    (120, and 1 more for each 64 MiB). Versions of modules (`_metadata`) are not kept: safetensors has no
    place for them, and no reader of GPT-2 asks.

    Raises CheckpointError naming the file and the rule; ConfigError when there is nothing to convert or
    `target_dir` is taken; StorageError when writing failed.
    """
    source, target_dir = Path(source), Path(target_dir)
    if sys.platform != "linux":
        raise ConfigError(f"'{source}': old .bin files are read in a confined process, which needs Linux")
    is_file = source.is_file()
    with UntrustedFolder(source.parent if is_file else source) as folder:
        jobs = _jobs(folder, source.name if is_file else None)
        files = OSFiles()
        target_dir = target_dir.parent.resolve() / target_dir.name
        if target_dir.is_symlink() or (target_dir.exists() and any(target_dir.iterdir())):
            raise ConfigError(f"'{target_dir}' exists already; choose another folder to write to")
        temporary = target_dir.with_name(f".{target_dir.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            make_directories(files, target_dir.parent)
            files.mkdir(temporary)
            walls = [_convert(folder, job, temporary, memory_bytes, cpu_s) for job in jobs]
            _check(f"{folder.path}/{BIN_INDEX_NAME}", temporary, jobs)
            notes = [_wall_note(walls), *_copy_companions(folder, jobs, temporary)]
            sync_directory(files, temporary)
            files.rename(temporary, target_dir)
            sync_directory(files, target_dir.parent)
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(f"cannot write '{target_dir}'", error, "the source is intact") from error
        finally:
            with contextlib.suppress(OSError):
                remove_tree(files, temporary)
    return tuple(notes)


def _jobs(folder: UntrustedFolder, name: str | None) -> list[_Job]:
    """What to convert. Raises ConfigError, CheckpointError."""
    if name is not None and not name.endswith(".json"):
        return [_Job(source=name, target=SINGLE_NAME)]
    single, index = folder.has(BIN_NAME), folder.has(BIN_INDEX_NAME)
    for done in (SINGLE_NAME, INDEX_NAME):
        if folder.has(done):
            raise ConfigError(f"'{folder.path}' holds {done}; it needs no conversion")
    if single and index:
        raise ConfigError(f"'{folder.path}' holds {BIN_NAME} and {BIN_INDEX_NAME}; which one is meant?")
    if single:
        return [_Job(source=BIN_NAME, target=SINGLE_NAME)]
    if not index:
        raise ConfigError(f"'{folder.path}' holds neither {BIN_NAME} nor {BIN_INDEX_NAME}")
    homes = _index(folder)
    shards = sorted(set(homes.values()))
    return [
        _Job(
            source=shard,
            target=f"model-{number:05d}-of-{len(shards):05d}.safetensors",
            names=frozenset(name for name, home in homes.items() if home == shard),
        )
        for number, shard in enumerate(shards, start=1)
    ]


def _index(folder: UntrustedFolder) -> dict[str, str]:
    """Tensor -> shard. Raises CheckpointError."""
    label = f"{folder.path}/{BIN_INDEX_NAME}"
    weight_map = folder.read_json(BIN_INDEX_NAME, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{label}: weight_map is not an object of names and files")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            raise CheckpointError(f"{label}: {shown(shard)} is not the name of a shard in this folder")
    n_shards = len(set(weight_map.values()))
    if n_shards > MAX_SHARDS:
        raise CheckpointError(f"{label}: names {n_shards} shards, over the limit of {MAX_SHARDS}")
    return weight_map


def _convert(
    folder: UntrustedFolder, job: _Job, directory: Path, memory_bytes: int | None, cpu_s: int | None
) -> tuple[str, ...]:
    """Write `job.target`; returns the walls that stood. Raises CheckpointError, OSError."""
    file = folder.open(job.source)
    files = OSFiles()
    handle = files.open_new(directory / job.target)
    try:
        cpu_s = _CPU_S + file.size_bytes // _BYTES_PER_CPU_S if cpu_s is None else cpu_s
        reply = _ask(file, handle, memory_bytes or DEFAULT_MEMORY_BYTES, cpu_s)
        file.check_unchanged()
        walls = _walls(file, reply)
        files.fsync(handle)
    finally:
        files.close(handle)
        file.close()
    return walls


def _ask(file: OpenFile, target: int, memory_bytes: int, cpu_s: int) -> bytes:
    """Run the child and return what it said. Raises CheckpointError if it did not live to say it."""
    arguments = [str(number) for number in (file.handle, target, memory_bytes, cpu_s)]
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "wafergpt.checkpoints.torch_bin.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(file.handle, target),
            cwd="/",
            # Nothing of the caller's: no tokens, no paths but that of the package that asks. One thread: a
            # process with several may not enter a namespace.
            env={
                "PYTHONPATH": str(Path(__file__).parents[3]),
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,  # Ctrl-C reaches this process, which ends the child
        )
    except OSError as error:
        file.refuse(f"the process to read it in cannot be started: {error.strerror}")
    assert child.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(_WALL_PER_CPU * cpu_s, end)
    timer.start()
    try:
        reply = child.stdout.read(_MAX_REPLY_BYTES)
        if len(reply) < _MAX_REPLY_BYTES:  # else it is flooding, and would not end
            child.wait()
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        child.stdout.close()
    if child.returncode != 0:
        file.refuse(_death(child.returncode, late.is_set(), cpu_s))
    return reply


def _death(code: int, late: bool, cpu_s: int) -> str:
    if late:
        return f"took over {_WALL_PER_CPU * cpu_s} s to read"
    if code == -signal.SIGXCPU:
        return f"took over {cpu_s} s of processor time to read"
    if code == -signal.SIGBUS:
        return "was cut off while it was read"
    return f"ended the process that read it (code {code})"


def _walls(file: OpenFile, reply: bytes) -> tuple[str, ...]:
    """What the child's answer says, which is as little trusted as the file."""
    try:
        answer = parse_json(reply)
        if set(answer) == {"walls"}:
            return tuple(str(wall)[:40] for wall in answer["walls"])
        kind, error = answer["kind"], "".join(c for c in str(answer["error"]) if c.isprintable())[:1000]
    except (ValueError, TypeError, KeyError):
        file.refuse("made the process that read it answer nonsense")
    if kind == "storage":
        raise StorageError(f"cannot write what was read from {file.label}: {error}; the source is intact")
    file.refuse(error if kind == "file" else f"cannot be read; please report this: {error}")


def _check(label: str, directory: Path, jobs: Sequence[_Job]) -> None:
    """Hold what was written to the rules of foreign safetensors; shards get their index."""
    index: dict[str, str] = {}
    total_size = 0
    with UntrustedFolder(directory) as written:
        for job in jobs:
            entries = map_tensors(written, job.target).entries
            total_size += sum(entry.end - entry.begin for entry in entries.values())
            wrong = sorted(job.names ^ set(entries)) if job.names is not None else []
            if wrong:
                verb = "does not name" if wrong[0] in entries else "names"
                has = "has" if wrong[0] in entries else "lacks"
                raise CheckpointError(f"{label}: {verb} {shown(wrong[0])}, which '{job.source}' {has}")
            index |= dict.fromkeys(entries, job.target)
    if jobs[0].names is not None:
        document = {"metadata": {"total_size": total_size}, "weight_map": index}
        text = json.dumps(document, indent=2, sort_keys=True).encode("ascii")
        write_synced(OSFiles(), directory / INDEX_NAME, [memoryview(text)])
        with UntrustedFolder(directory) as written:
            open_tensors(written)  # no tensor in two shards


def _copy_companions(folder: UntrustedFolder, jobs: Sequence[_Job], directory: Path) -> list[str]:
    """Copy config, tokenizer and card byte by byte; returns a note about what stays behind."""
    for name, max_bytes in _COMPANIONS.items():
        if folder.has(name):
            data = folder.read_bytes(name, max_bytes)
            write_synced(OSFiles(), directory / name, [memoryview(data)])
    known = {*_COMPANIONS, *(job.source for job in jobs), BIN_INDEX_NAME}
    others = [name for name in folder.names() if name not in known]
    if not others:
        return []
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return [f"not copied: {', '.join(shown(name) for name in others[:5])}{more}"]


def _wall_note(walls: Sequence[tuple[str, ...]]) -> str:
    """What confined the reader, and in plain words if the network was not among it."""
    common = [wall for wall in walls[0] if all(wall in others for others in walls)]
    note = f"read in a process confined by {', '.join(common)}"
    if not {"network namespace", "system-call filter"} & set(common):
        note += "; this system allows neither a network namespace nor a system-call filter"
    return note
