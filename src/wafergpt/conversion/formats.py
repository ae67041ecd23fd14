"""Which format a path or name is in, and every readable format behind one function."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from wafergpt.backends.packed_model import WEIGHTS_NAME
from wafergpt.checkpoints.checkpoint import TENSOR_SUFFIX, parse_step_name
from wafergpt.checkpoints.files import CHUNK_BYTES
from wafergpt.checkpoints.gguf.reader import read_gguf
from wafergpt.checkpoints.huggingface.config import MissingScale
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.huggingface.hub import resolve
from wafergpt.checkpoints.manifest import MANIFEST_NAME
from wafergpt.checkpoints.modelzoo.mdl import read_mdl
from wafergpt.checkpoints.native import CHECKPOINTS_NAME, load_checkpoint
from wafergpt.checkpoints.native_model import MODEL_GROUP, from_checkpoint
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
from wafergpt.config import require
from wafergpt.errors import CheckpointError
from wafergpt.training import metrics

_GGUF_MAGIC = b"GGUF"  # github.com/ggml-org/ggml, docs/gguf.md
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"  # HDF5 file format specification, "Superblock"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_FILE_SUFFIXES = (".gguf", ".mdl", ".bin", ".safetensors")


class Format(StrEnum):
    """What `detect` tells apart."""

    NATIVE = "native"  # a run folder, or one checkpoint folder
    HUGGING_FACE = "huggingface"  # a folder with config.json and safetensors
    TORCH_BIN = "torch-bin"  # ... with pytorch_model.bin: only `wafergpt convert` opens it
    MODEL_ZOO = "mdl"  # the Cerebras Model Zoo's HDF5 checkpoint
    GGUF = "gguf"  # llama.cpp's file
    PACKED = "packed"  # a folder that `wafergpt quantize` wrote


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that was read, and the files its weights came from."""

    model: StoredModel
    format: Format
    files: tuple[Path, ...]


def detect(path: Path) -> Format:
    """The format of an existing file or folder. Raises CheckpointError naming what was looked for."""
    if path.is_dir():
        return _detect_folder(path)
    if not path.exists():
        raise CheckpointError(f"'{path}' does not exist")
    if not path.is_file():
        raise CheckpointError(f"'{path}' is neither a file nor a folder")
    with path.open("rb") as file:
        start = file.read(len(_HDF5_MAGIC))
    if start.startswith(_GGUF_MAGIC):
        return Format.GGUF
    if start == _HDF5_MAGIC:
        return Format.MODEL_ZOO
    hint = "; give the folder it lies in" if path.suffix in (".safetensors", ".bin") else ""
    raise CheckpointError(f"'{path}' is neither a GGUF file nor an HDF5 (.mdl) file{hint}")


def _detect_folder(path: Path) -> Format:
    names = {entry.name for entry in path.iterdir()}
    if MANIFEST_NAME in names:
        return Format.NATIVE
    if WEIGHTS_NAME in names:
        return Format.PACKED
    if "config.json" in names:
        if names & {"model.safetensors", "model.safetensors.index.json"}:
            return Format.HUGGING_FACE
        if names & {"pytorch_model.bin", "pytorch_model.bin.index.json"}:
            return Format.TORCH_BIN
        raise CheckpointError(f"'{path}' has a config.json but no model.safetensors and no pytorch_model.bin")
    if CHECKPOINTS_NAME in names or any(map(parse_step_name, names)):
        return Format.NATIVE
    raise CheckpointError(
        f"'{path}' holds no checkpoint: neither {CHECKPOINTS_NAME}/ nor {MANIFEST_NAME} nor config.json"
    )


def locate(name: str, revision: str | None = None, *, old_weights: bool = False) -> Path:
    """A path as it is; a hub name such as `cerebras/Cerebras-GPT-111M` as its folder in the hub's cache.

    With `old_weights`, a hub model without safetensors comes with its .bin files, for `convert`. Raises
    CheckpointError when it is neither, ConfigError for a revision of a path, MissingDependencyError for a hub
    name without huggingface_hub.
    """
    path = Path(name).expanduser()
    is_path = path.exists() or path.suffix in _FILE_SUFFIXES or not _HUB_NAME.fullmatch(name)
    # A name below a folder that is there is a slip in a path, not somebody's model.
    if not is_path and (path.parent == Path() or not path.parent.is_dir()):
        found = resolve(name, revision=revision)
        if old_weights and not any(found.glob(f"*{TENSOR_SUFFIX}")):
            found = resolve(name, revision=revision, old_weights=True)
        return found
    require(revision is None, f"a revision goes with a hub name; '{name}' is a path")
    if not path.exists():
        raise CheckpointError(f"'{name}' does not exist")
    return path


def read(
    path: Path, *, mup_logit_scale: MissingScale | str | None = None, workspace: Path | None = None
) -> Opened:
    """The model at `path`, in whatever readable format it is.

    Old `.bin` files are opened only with a `workspace`, a folder in which their confined reader may write.
    `mup_logit_scale` says what a muP config that leaves it open means. Raises CheckpointError, ConfigError,
    DataError, StorageError, MissingDependencyError.
    """
    kind = detect(path)
    if kind is Format.NATIVE:
        checkpoint = load_checkpoint(path, groups=[MODEL_GROUP])
        weights = checkpoint.path / f"{MODEL_GROUP}{TENSOR_SUFFIX}"
        model = from_checkpoint(checkpoint)
        facts = {**model.provenance, **_held_out(path, checkpoint.step)}
        return Opened(model=replace(model, provenance=facts), format=kind, files=(weights,))
    if kind is Format.PACKED:
        raise CheckpointError(
            f"'{path}' is quantized: `generate`, `eval` and `verify` run it, but its float weights are gone"
        )
    if kind is Format.GGUF:
        return Opened(model=read_gguf(path), format=kind, files=(path,))
    if kind is Format.MODEL_ZOO:
        return Opened(model=read_mdl(path), format=kind, files=(path,))
    notes: tuple[str, ...] = ()
    files = tuple(sorted(path.glob(f"*{TENSOR_SUFFIX}"))) or tuple(sorted(path.glob("pytorch_model*.bin")))
    if kind is Format.TORCH_BIN:
        if workspace is None:
            raise CheckpointError(f"'{path}' holds an old .bin file: run `wafergpt convert {path} NEW` first")
        notes, path = bin_to_safetensors(path, workspace), workspace
    model = read_folder(path, mup_logit_scale=mup_logit_scale)
    return Opened(model=replace(model, notes=(*notes, *model.notes)), format=kind, files=files)


def _held_out(run: Path, step: int) -> dict[str, Any]:
    """What a run logged of its held-out loss at `step`, as the model's provenance; nothing if it did not."""
    name = "held_out_nats_per_token"
    lines = [line for line in metrics.read(run / "metrics.jsonl") if line["step"] == step and name in line]
    return {name: lines[-1][name]} if lines else {}


def sha256_of(files: tuple[Path, ...]) -> dict[str, str]:
    """{file name: SHA-256}, read in pieces."""
    found = {}
    for path in files:
        sha256 = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK_BYTES):
                sha256.update(piece)
        found[path.name] = sha256.hexdigest()
    return found
