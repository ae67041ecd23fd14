"""Names that are not the plain files they seem, files that change, and folders that are as they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from hostile_lab.folders import (
    INDEX,
    TEMPLATE,
    WEIGHTS,
    Case,
    arrays,
    good,
    packed,
    put,
    safetensors,
    script,
    sharded,
)

CONFIG, TOKENIZER, TEMPLATE_FILE = "config.json", "tokenizer.json", "chat_template.jinja"


def _replaced(what: str, name: str, rule: str, make: Callable[[Path], object]) -> Case:
    def build(folder: Path, marker: Path) -> None:
        make(good(folder, without=(name,)) / name)

    return Case(name=f"{what} as {name}", build=build, rule=rule, file=name)


def _links() -> list[Case]:
    def outward(path: Path) -> None:
        """The very file that belongs there, but outside the folder."""
        outside = path.parent.parent / f"{path.parent.name}-outside"
        outside.mkdir()
        path.symlink_to(good(outside) / path.name)

    def inward(path: Path) -> None:
        good(path.parent, without=(CONFIG, TOKENIZER))
        (path.parent / "real").write_bytes(b"{}")
        path.unlink(missing_ok=True)
        path.symlink_to("real")

    def hard(path: Path) -> None:
        outside = path.parent.parent / f"{path.parent.name}-outside"
        outside.mkdir()
        os.link(good(outside) / path.name, path)

    cases = [_replaced("link out", name, "symbolic link", outward) for name in (CONFIG, WEIGHTS, TOKENIZER)]
    cases += [_replaced("hard link", name, "hard links", hard) for name in (CONFIG, WEIGHTS, TOKENIZER)]
    targets = {
        "/etc/passwd": TEMPLATE_FILE,
        "/dev/zero": WEIGHTS,
        "/proc/self/mem": WEIGHTS,
        "/proc/self/environ": CONFIG,
        "../../blobs/0123": CONFIG,
        "nowhere": "merges.txt",
    }
    for target, name in targets.items():
        if name == "merges.txt":
            continue
        cases.append(
            _replaced(f"link to {target}", name, "symbolic link", lambda p, t=target: p.symlink_to(t))
        )  # type: ignore[misc]
    cases.append(_replaced("link inside", CONFIG, "symbolic link", inward))
    cases.append(
        _replaced("link to itself", CONFIG, "symbolic link", lambda path: path.symlink_to(path.name))
    )
    return cases


def _special() -> list[Case]:
    def listen(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)

    def sparse(size_bytes: int, head: bytes = b"") -> Callable[[Path], object]:
        def make(path: Path) -> None:
            path.write_bytes(head)
            os.truncate(path, size_bytes)

        return make

    cases = [
        _replaced("FIFO", name, "FIFO", os.mkfifo) for name in (CONFIG, WEIGHTS, TOKENIZER, TEMPLATE_FILE)
    ]
    cases += [_replaced("folder", name, "folder", os.mkdir) for name in (CONFIG, WEIGHTS, TOKENIZER)]
    cases.append(_replaced("socket", CONFIG, "socket", listen))
    if os.geteuid() == 0:
        zero = os.makedev(1, 5)
        cases.append(
            _replaced("/dev/zero itself", WEIGHTS, "device", lambda path: os.mknod(path, 0o20666, zero))
        )
    giant = 1 << 40
    header = b'{"transformer.wte.weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (giant, giant)
    start = packed(header, b"")
    cases += [
        _replaced("1 TB of nothing", WEIGHTS, "", sparse(giant)),
        _replaced("1 TB of one tensor", WEIGHTS, "sparse", sparse(giant + len(start), start)),
        _replaced("1 TB of nothing", CONFIG, "", sparse(giant)),
        _replaced("1 TB of nothing", TOKENIZER, "", sparse(giant)),
        _replaced("900 MB of nothing", WEIGHTS, "not valid JSON", sparse(900 << 20)),
    ]
    return cases


def _twins() -> list[Case]:
    def twin(name: str, other: str) -> Case:
        def build(folder: Path, marker: Path) -> None:
            put(good(folder), other, (folder / name).read_bytes() if (folder / name).exists() else b"")

        return Case(name=f"case twins {name} and {other}", build=build, rule="differ in case only", file=name)

    twins = {CONFIG: "Config.JSON", WEIGHTS: "model.SAFETENSORS", TOKENIZER: "TOKENIZER.json"}
    return [twin(name, other) for name, other in twins.items()]


def _changing() -> list[Case]:
    return [
        Case(
            name=f"weights that {tamper} once they are mapped",
            build=lambda folder, marker: good(folder),
            rule="changed while it was read",
            file=WEIGHTS,
            tamper=tamper,
        )
        for tamper in ("grow", "shrink", "are rewritten")
    ]


def _missing() -> list[Case]:
    def only(name: str) -> Callable[[Path, Path], object]:
        return lambda folder, marker: good(folder, without=(name,))

    def crowd(folder: Path, marker: Path) -> None:
        good(folder)
        for n in range(10_001):
            os.mknod(folder / f"{n}.txt")

    return [
        Case(name="no folder", build=lambda folder, marker: None, rule="cannot be opened", given="missing"),
        Case(name="an empty folder", build=lambda folder, marker: None, rule="config.json"),
        Case(name="no config", build=only(CONFIG), rule="config.json"),
        Case(name="no weights", build=only(WEIGHTS), rule="has neither"),
        Case(name="10,000 other files", build=crowd, rule="over 10000 files"),
    ]


def _valid() -> list[Case]:
    def hub(folder: Path, marker: Path) -> None:
        blobs, snapshot = folder / "models--a--b" / "blobs", folder / "models--a--b" / "snapshots" / "f00d"
        for path in (blobs, snapshot):
            path.mkdir(parents=True)
        for n, path in enumerate(sorted(good(blobs).iterdir())):
            (snapshot / path.name).symlink_to(f"../../blobs/{n:040x}")
            path.rename(blobs / f"{n:040x}")

    def dtype(name: str) -> Callable[[Path, Path], object]:
        return lambda folder, marker: put(good(folder), WEIGHTS, safetensors(arrays(name)))

    def headless(folder: Path, marker: Path) -> None:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in arrays().items()}
        put(good(folder), WEIGHTS, safetensors(plain))

    def everything(folder: Path, marker: Path) -> None:
        sharded(folder)
        put(folder, TEMPLATE_FILE, TEMPLATE)
        put(folder, "tokenizer_config.json", {"add_prefix_space": False, "model_max_length": 10**30})
        put(folder, "generation_config.json", {"eos_token_id": 256})
        put(folder, "special_tokens_map.json", {"bos_token": "<|endoftext|>"})
        put(folder, "README.md", "---\nlicense: mit\n---\n")
        put(folder, "modeling.py", script(marker))
        (folder / "onnx").mkdir()
        (folder / "LATEST").symlink_to("/etc")

    builds = {
        "plain": lambda folder, marker: good(folder),
        "sharded": lambda folder, marker: sharded(folder),
        "headless": headless,
        **{kind: dtype(kind) for kind in ("F16", "BF16", "F64")},
        "with everything else": everything,
        "no tokenizer": lambda folder, marker: good(folder, without=(TOKENIZER,)),
    }
    cases = [Case(name=f"valid: {name}", build=build, rule=None) for name, build in builds.items()]
    return [
        *cases,
        Case(name="valid: hub cache", build=hub, rule=None, given="models--a--b/snapshots/f00d"),
    ]


def file_cases() -> list[Case]:
    return [*_links(), *_special(), *_twins(), *_changing(), *_missing(), *_valid()]


__all__ = ["INDEX", "file_cases"]
