"""manifest.json: the list of a checkpoint's files with sizes and digests, sealed by a digest of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from wafergpt.checkpoints.files import FileDigest
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.errors import CheckpointError
from wafergpt.units import MIB

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = MIB
FORMAT = "wafergpt-checkpoint"
FORMAT_VERSION = 1
MAX_STEP = 10**15 - 1  # 15 digits, the longest a folder name holds

# Names are not paths: nothing that could leave the folder, hide in it or need quoting.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileKind(StrEnum):
    """How a file is read back."""

    TENSORS = "tensors"
    DOCUMENT = "document"
    BLOB = "blob"


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One file of the checkpoint."""

    kind: FileKind
    digest: FileDigest


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete checkpoint of `step` consists of."""

    step: int
    files: Mapping[str, ManifestEntry]

    def to_bytes(self) -> bytes:
        """The text of manifest.json; its digest covers all its other fields."""
        files = {
            name: {"kind": e.kind.value, "size_bytes": e.digest.size_bytes, "sha256": e.digest.sha256}
            for name, e in sorted(self.files.items())
        }
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": self.step, "files": files}
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        body["sha256"] = hashlib.sha256(canonical.encode("ascii")).hexdigest()
        return (json.dumps(body, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse and check. Raises CheckpointError with the reason."""

        def refuse(reason: str) -> NoReturn:
            raise CheckpointError(f"{MANIFEST_NAME}: {reason}")

        try:
            body = parse_json(data)
        except ValueError as error:
            refuse(f"not valid JSON: {error}")
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            refuse("not the manifest of a wafergpt checkpoint")
        if body.get("format_version") != FORMAT_VERSION:
            version = body.get("format_version")
            refuse(f"format version {version!r} is not the version {FORMAT_VERSION} this release reads")
        step, files = body.get("step"), body.get("files")
        if type(step) is not int or not 0 <= step <= MAX_STEP or not isinstance(files, dict):
            refuse("step or files is missing or wrong")
        check_names(files, refuse)
        manifest = cls(
            step=step, files={name: _entry(name, fields, refuse) for name, fields in files.items()}
        )
        # One comparison covers the seal, unknown keys and every byte that JSON itself would not notice.
        if data != manifest.to_bytes():
            refuse("it was changed or damaged (its own SHA-256 or its form does not match)")
        return manifest


def check_names(names: Iterable[str], refuse: Callable[[str], NoReturn]) -> None:
    """Call `refuse(reason)` for a file name that is unsafe, reserved or the same as another but for case."""
    seen = {MANIFEST_NAME}
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            refuse(f"{name!r} cannot be the name of a file")
        if name.lower() in seen:
            refuse(f"the file name '{name}' is taken")
        seen.add(name.lower())


def _entry(name: str, fields: Any, refuse: Callable[[str], NoReturn]) -> ManifestEntry:
    if not isinstance(fields, dict) or set(fields) != {"kind", "size_bytes", "sha256"}:
        refuse(f"'{name}' does not have exactly kind, size_bytes and sha256")
    kind, size_bytes, sha256 = fields["kind"], fields["size_bytes"], fields["sha256"]
    if kind not in [member.value for member in FileKind]:
        refuse(f"'{name}' is of the unknown kind {kind!r}")
    if type(size_bytes) is not int or not 0 <= size_bytes < 2**63:
        refuse(f"'{name}' has a bad size")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        refuse(f"'{name}' has a bad SHA-256")
    return ManifestEntry(kind=FileKind(kind), digest=FileDigest(size_bytes=size_bytes, sha256=sha256))
