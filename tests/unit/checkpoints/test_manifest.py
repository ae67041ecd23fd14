"""manifest.json vouches for every byte, its own included."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from wafergpt.checkpoints.files import FileDigest
from wafergpt.checkpoints.manifest import FileKind, Manifest, ManifestEntry
from wafergpt.errors import CheckpointError

ENTRY = ManifestEntry(kind=FileKind.TENSORS, digest=FileDigest(size_bytes=12, sha256="0" * 64))
MANIFEST = Manifest(step=5, files={"model.safetensors": ENTRY})
DATA = MANIFEST.to_bytes()


def resealed(**changes: Any) -> bytes:
    """A manifest that is consistent with itself but says something it must not."""
    body = json.loads(DATA)
    del body["sha256"]
    body |= changes
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    body["sha256"] = hashlib.sha256(canonical).hexdigest()
    return (json.dumps(body, indent=1) + "\n").encode()


def files(**changes: Any) -> dict[str, Any]:
    return {"model.safetensors": {"kind": "tensors", "size_bytes": 12, "sha256": "0" * 64, **changes}}


def test_round_trip() -> None:
    assert Manifest.from_bytes(DATA) == MANIFEST
    assert resealed() == DATA


def test_every_bit_counts() -> None:
    for bit in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            Manifest.from_bytes(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not the manifest"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (DATA + b" ", "changed or damaged"),
        (DATA.replace(b'"step": 5', b'"step": 6'), "changed or damaged"),
        (resealed(format="other"), "not the manifest"),
        (resealed(format_version=2), "format version 2"),
        (resealed(step=-1), "step or files"),
        (resealed(step=5.0), "step or files"),
        (resealed(step=True), "step or files"),
        (resealed(files=[]), "step or files"),
        (resealed(extra=1), "changed or damaged"),
        (resealed(files={"../x": files()["model.safetensors"]}), "cannot be the name"),
        (resealed(files={"a": files()["model.safetensors"], "A": files()["model.safetensors"]}), "is taken"),
        (resealed(files={"manifest.json": files()["model.safetensors"]}), "is taken"),
        (resealed(files={"a": 1}), "exactly kind"),
        (resealed(files=files(more=1)), "exactly kind"),
        (resealed(files=files(kind="pickle")), "unknown kind"),
        (resealed(files=files(kind=["tensors"])), "unknown kind"),
        (resealed(files=files(size_bytes=-1)), "bad size"),
        (resealed(files=files(size_bytes=2**63)), "bad size"),
        (resealed(files=files(size_bytes="12")), "bad size"),
        (resealed(files=files(sha256="0" * 63)), "bad SHA-256"),
        (resealed(files=files(sha256=7)), "bad SHA-256"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=r"^manifest\.json: ") as caught:
        Manifest.from_bytes(data)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
