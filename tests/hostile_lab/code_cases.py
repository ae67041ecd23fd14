"""Files that would run code if someone let them: pickles in every disguise, scripts, archives."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import marshal
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hostile_lab.folders import CONFIG, INDEX, WEIGHTS, Case, good, pickled, put, safetensors, script

Wrap = Callable[[Path], bytes]


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _tar(members: dict[str, bytes], mode: str = "w", link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("config.json")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
    return out.getvalue()


def _npy(marker: Path) -> bytes:
    """An object array as numpy writes it: a header, then a pickle."""
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + pickled(marker)


def _npz(marker: Path) -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(1))
    return _zip({"a.npy": _npy(marker)})


DISGUISES: dict[str, Wrap] = {
    **{f"protocol {n}": (lambda m, n=n: pickled(m, n)) for n in (0, 1, 2, 3, 4, 5)},  # type: ignore[misc]
    "torch zip": lambda m: _zip({"archive/data.pkl": pickled(m), "archive/version": b"3\n"}),
    "zip deflated": lambda m: _zip({"archive/data.pkl": pickled(m)}, zipfile.ZIP_DEFLATED),
    "torch before 1.6": lambda m: pickled(m, 2) * 3,
    "tar": lambda m: _tar({"pickle": pickled(m), "storages": b""}),
    "gzip": lambda m: gzip.compress(pickled(m)),
    "bzip2": lambda m: bz2.compress(pickled(m)),
    "xz": lambda m: lzma.compress(pickled(m)),
    "7z": lambda m: b"7z\xbc\xaf\x27\x1c\x00\x04" + pickled(m),
    "npy": _npy,
    "npz": _npz,
    "joblib": lambda m: zlib.compress(pickled(m)),
    "marshal": lambda m: marshal.dumps(compile(script(m), "x", "exec")),
    "polyglot: weights then pickle": lambda m: safetensors() + pickled(m),
    "polyglot: weights then zip": lambda m: safetensors() + _zip({"archive/data.pkl": pickled(m)}),
    "polyglot: script as header": lambda m: len(script(m)).to_bytes(8, "little") + script(m).encode(),
}


def _disguised(wrap: Wrap) -> Callable[[Path, Path], object]:
    return lambda folder, marker: put(good(folder), WEIGHTS, wrap(marker))


def _in_place_of(name: str) -> Callable[[Path, Path], object]:
    def build(folder: Path, marker: Path) -> None:
        good(folder, without=(WEIGHTS,) if name == INDEX else ())
        put(folder, name, pickled(marker, 4))

    return build


def _only(name: str, wrap: Wrap = pickled) -> Callable[[Path, Path], object]:
    return lambda folder, marker: put(good(folder, without=(WEIGHTS,)), name, wrap(marker))


def _beside(name: str) -> Callable[[Path, Path], object]:
    def build(folder: Path, marker: Path) -> None:
        put(good(folder), name, script(marker) if name.endswith((".py", ".pth")) else pickled(marker))

    return build


def _tensor_holding_a_pickle(folder: Path, marker: Path) -> None:
    from hostile_lab.folders import arrays

    payload = pickled(marker)
    put(good(folder), WEIGHTS, safetensors({**arrays(), "payload": ("U8", [len(payload)], payload)}))


def _auto_map(folder: Path, marker: Path) -> None:
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil")
    put(good(folder), "config.json", {**CONFIG, "auto_map": classes})
    put(folder, "modeling_evil.py", script(marker))


def _archive(name: str, content: Wrap) -> Case:
    return Case(
        name=f"archive: {name}",
        build=lambda folder, marker: put(folder, name, content(marker)),
        rule="archives are not unpacked",
        given=name,
    )


def _whole(marker: Path) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        WEIGHTS: safetensors(),
        "x.py": script(marker).encode(),
    }


def code_cases() -> list[Case]:
    replaced = {
        "config.json": "not valid JSON",
        "tokenizer.json": "not valid JSON",
        "tokenizer_config.json": "not valid JSON",
        "chat_template.jinja": "",
        INDEX: "not valid JSON",
    }
    old = {
        "pytorch_model.bin": "convert",
        "pytorch_model-00001-of-00001.bin": "convert",
        "pytorch_model.bin.index.json": "has neither",
        "tf_model.h5": "has neither",
        "flax_model.msgpack": "has neither",
        "model.ckpt": "has neither",
        "consolidated.00.pth": "has neither",
        "adapter_model.bin": "has neither",
    }
    beside = ["pytorch_model.bin", "modeling_gpt2.py", "__init__.py", "sitecustomize.py", "evil.pth"]
    beside += ["training_args.bin", "optimizer.pt", "tokenizer.pkl", "conftest.py", "wafergpt.py", "numpy.py"]
    slips = {"../../outside": b"x", "/etc/outside": b"x"}
    archives = {
        "model.tar": lambda m: _tar(_whole(m)),
        "model.tar.gz": lambda m: _tar(_whole(m), "w:gz"),
        "model.zip": lambda m: _zip(_whole(m)),
        "model.7z": lambda m: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(64),
        "slip.tar": lambda m: _tar(slips),
        "slip.zip": lambda m: _zip(slips),
        "link.tar": lambda m: _tar({}, link="/etc/passwd"),
        "bomb.zip": lambda m: _zip({WEIGHTS: bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
        "bomb.tar.gz": lambda m: _tar({WEIGHTS: bytes(1 << 24)}, "w:gz"),
        "model.pt": pickled,
        "model.safetensors": lambda m: safetensors(),
    }
    return [
        *(
            Case(name=f"pickle as weights: {n}", build=_disguised(w), rule="", file=WEIGHTS)
            for n, w in DISGUISES.items()
        ),
        *(Case(name=f"pickle as {n}", build=_in_place_of(n), rule=r, file=n) for n, r in replaced.items()),
        *(Case(name=f"only {n}", build=_only(n), rule=r) for n, r in old.items()),
        *(Case(name=f"valid beside {n}", build=_beside(n), rule=None) for n in beside),
        Case(name="pickle in a tensor", build=_tensor_holding_a_pickle, rule="'payload'"),
        Case(name="auto_map names a script", build=_auto_map, rule="*"),
        *(_archive(name, content) for name, content in archives.items()),
    ]
