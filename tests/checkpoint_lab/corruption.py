"""The corruption matrix: every kind of damage to every file of the newest checkpoint, on a real disk."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from checkpoint_lab.checks import Outcome
from checkpoint_lab.trainer import Fingerprint, fingerprint
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.errors import CheckpointError

OLDER, NEWER = "step-00000001", "step-00000002"
PAGE_BYTES = 4096

Make = Callable[[Path], CheckpointStore]
Damage = Callable[[Path], None]


def real_store(root: Path) -> CheckpointStore:
    return CheckpointStore(root, keep=9)


def prepare(root: Path) -> tuple[list[str], Fingerprint]:
    """Two checkpoints; returns the newer one's file names and the older one's content."""
    rng, store = np.random.default_rng(7), real_store(root)
    for step in (1, 2):
        store.save(
            step,
            {
                "model": {"wte.weight": rng.standard_normal((30, 100), np.float32)},
                "optimizer": {"exp_avg.wte.weight": rng.standard_normal((30, 100), np.float32)},
            },
            {"config.json": {"step": step, "d_model": 100}, "state.json": {"losses": [0.5 / step] * 40}},
            {"tokenizer.bin": rng.bytes(5000)},
        )
    older = store.load(root / OLDER)
    return sorted(os.listdir(root / NEWER)), fingerprint(older)


def whole_matrix(root: Path, make: Make) -> Outcome:
    """Each damage in turn: the loader falls back to the older one, bit for bit, and says why in one line."""
    outcome = Outcome()
    names, older = prepare(root)
    for name, what, damage in damages(root, names):
        backup = root.parent / "backup"
        shutil.copytree(root / NEWER, backup)
        damage(root / NEWER / name if name else root / NEWER)
        _must_fall_back(outcome, make, root, older, f"{what} in {name or 'the folder'}")
        _remove(root / NEWER)
        backup.rename(root / NEWER)
    outcome.require(make(root).load_newest().step == 2, "the undamaged checkpoint does not load")
    return outcome


def bit_flips(root: Path, make: Make, n_flips: int | None, seed: int) -> Outcome:
    """Flip single bits: `n_flips` sampled, half of them in the first 4 KiB of a file; None: all of those."""
    outcome, rng = Outcome(), random.Random(seed)
    names, older = prepare(root)
    sizes_bytes = {name: (root / NEWER / name).stat().st_size for name in names}
    flips = [(name, bit) for name in names for bit in range(8 * min(PAGE_BYTES, sizes_bytes[name]))]
    anywhere = [
        (name, rng.randrange(8 * sizes_bytes[name]))
        for name in rng.choices(names, k=(n_flips or 20_000) // 2)
    ]
    if n_flips is not None:
        flips = rng.sample(flips, n_flips // 2)
    for name, bit in flips + anywhere:
        with open(root / NEWER / name, "r+b") as file:
            _flip(file.fileno(), bit)
            _must_fall_back(outcome, make, root, older, f"bit {bit} of {name} flipped")
            _flip(file.fileno(), bit)
    outcome.require(make(root).load_newest().step == 2, "the undamaged checkpoint does not load")
    return outcome


def _flip(handle: int, bit: int) -> None:
    old = os.pread(handle, 1, bit // 8)[0]
    os.pwrite(handle, bytes([old ^ 1 << bit % 8]), bit // 8)


def _must_fall_back(outcome: Outcome, make: Make, root: Path, older: Fingerprint, case: str) -> None:
    outcome.n_cases += 1
    try:
        checkpoint = make(root).load_newest()
    except CheckpointError as error:
        outcome.require(False, f"{case}: no fallback: {error}")
        return
    outcome.require(checkpoint.step == 1, f"{case}: not detected")
    outcome.require(fingerprint(checkpoint) == older, f"{case}: the older checkpoint came back changed")
    reasons = [skipped.reason for skipped in checkpoint.skipped if skipped.path == root / NEWER]
    said = len(reasons) == 1 and 0 < len(reasons[0]) < 300 and "\n" not in reasons[0]
    outcome.require(said or checkpoint.step != 1 or not (root / NEWER).is_dir(), f"{case}: reasons {reasons}")


def damages(root: Path, names: list[str]) -> Iterator[tuple[str, str, Damage]]:
    """(file name or "" for the folder, what, how)."""
    for name in names:
        size_bytes = (root / NEWER / name).stat().st_size
        header_bytes = size_bytes // 3
        cuts = {"header cut": header_bytes, "half": size_bytes // 2, "last byte cut": size_bytes - 1}
        for what, length in {"0 bytes": 0, "1 byte": 1, "7 bytes": 7, "8 bytes": 8, **cuts}.items():
            yield name, what, lambda path, length=length: os.truncate(path, length)
        yield name, "one byte more", lambda path: path.write_bytes(path.read_bytes() + b"\n")
        yield name, "first page zeroed", lambda path: _zero(path, 0)
        yield name, "last page zeroed", lambda path: _zero(path, max(0, path.stat().st_size - PAGE_BYTES))
        yield name, "missing", lambda path: path.unlink()
        yield name, "name in other case", lambda path: path.rename(path.with_name(path.name.upper()))
        yield name, "of another step", lambda path: shutil.copy(root / OLDER / path.name, path)
        yield name, "a directory", _as_directory
        yield name, "a symbolic link to the same bytes", _as_link
        yield name, "a dangling symbolic link", _as_dangling_link
        yield name, "a FIFO", lambda path: (path.unlink(), os.mkfifo(path))
        if _devices_allowed(root):
            yield (
                name,
                "a device",
                lambda path: (path.unlink(), os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))),
            )
        if os.geteuid() != 0:  # root reads everything
            yield name, "unreadable", lambda path: path.chmod(0)
        for other in names:
            if other > name:
                yield (
                    name,
                    f"swapped with {other}",
                    lambda path, other=other: _swap(path, path.with_name(other)),
                )
    yield "", "emptied", lambda path: (_remove(path), path.mkdir())
    yield "", "a copy of the older one", lambda path: (_remove(path), shutil.copytree(root / OLDER, path))
    yield "", "a symbolic link", lambda path: (_remove(path), path.symlink_to(root / OLDER))
    yield "", "a link to the same bytes", _folder_as_link
    yield "", "a file", lambda path: (_remove(path), path.write_text("not a folder"))
    yield "", "a FIFO", lambda path: (_remove(path), os.mkfifo(path))


def _devices_allowed(root: Path) -> bool:
    probe = root.parent / "probe"
    try:
        os.mknod(probe, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        probe.unlink()
    except OSError:
        return False
    return True


def _zero(path: Path, start: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + PAGE_BYTES] = bytes(len(data[start : start + PAGE_BYTES]))
    path.write_bytes(data)


def _as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(path: Path) -> None:
    hidden = path.with_name("same." + path.name)
    path.rename(hidden)
    path.symlink_to(hidden)


def _as_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _folder_as_link(path: Path) -> None:
    moved = path.parent.parent / "moved"
    shutil.rmtree(moved, ignore_errors=True)
    path.rename(moved)
    path.symlink_to(moved)


def _swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
