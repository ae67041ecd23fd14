"""Weights packed for the native backend: one file, written once, mapped read-only ever after (no torch).

The file is a fixed prefix (magic, length of the header, its SHA-256), the header in JSON, the body from the
next multiple of 4096 on, and the SHA-256 of the SHA-256s of every 4 MiB before it, which the cores of a
machine share. What the body holds, and where, follows from the header's config and precision alone; a file
of any other size, or with a bit that was not written, is refused.

| precision | layers' matrices | token embedding, tied head | positions, biases, norms | keys, values |
|---|---|---|---|---|
| f32 | float32 | float32 | float32 | float32 |
| bf16 | bfloat16 | bfloat16 | float32 | bfloat16 |
| int8 | int8, a scale a row | int8, a scale a row | float32 | bfloat16 |
| int4 | int4, a scale every 32 values | int8, a scale a row | float32 | bfloat16 |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.backends.packed_blocks import BlockDigest, in_huge_pages, is_whole, mapped_file
from wafergpt.checkpoints.files import write_stream
from wafergpt.checkpoints.stored_model import StoredModel, check_arrays
from wafergpt.config import from_dict, to_dict
from wafergpt.errors import CheckpointError, ConfigError, did_you_mean
from wafergpt.kernels import native
from wafergpt.kernels.build import cache_dir
from wafergpt.kernels.native import Format
from wafergpt.model.config import GPTConfig

MAGIC = b"WGPTPACK"
VERSION = 2  # of the layout; another one is packed anew
SUFFIX = ".wgpack"
WEIGHTS_NAME = f"model{SUFFIX}"  # in a folder that `wafergpt quantize` wrote
_ALIGN = 64
_BODY_ALIGN = 4096
_PREFIX_BYTES = len(MAGIC) + 8 + 32
_MAX_HEADER_BYTES = 1 << 16
_REMEDY = "; wafergpt quantize writes it anew"


class Precision(StrEnum):
    """What the matrices are stored and multiplied in."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def layers(self) -> Format:
        """Format of the layers' matrices."""
        return {"f32": Format.F32, "bf16": Format.BF16, "int8": Format.INT8, "int4": Format.INT4}[self.value]

    @property
    def head(self) -> Format:
        """Format of the token embedding, which is the head: int8 in an int4 model, for its quality."""
        return Format.INT8 if self is Precision.INT4 else self.layers

    @property
    def keys(self) -> Format:
        """Format of the key-value memory."""
        return Format.F32 if self is Precision.F32 else Format.BF16

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The precision of that name. Raises ConfigError with a suggestion."""
        try:
            return cls(text)
        except ValueError:
            known = [str(p.value) for p in cls]
            raise ConfigError(
                f"precision '{text}' is not one of {', '.join(known)}{did_you_mean(text, known)}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some bytes of the body: a parameter, or the panels (and scales) of one."""

    parameter: str
    kind: str  # "panels", "scales" or "floats"
    begin: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything lies in a body: follows from config and precision."""

    sections: Mapping[tuple[str, str], Section]
    n_bytes: int

    def begin(self, parameter: str, kind: str) -> int:
        """Offset of a section, -1 if there is none."""
        section = self.sections.get((parameter, kind))
        return -1 if section is None else section.begin


def layout(config: GPTConfig, precision: Precision) -> Layout:
    """The body's table of contents: in the order in which a step reads it, the head last."""
    shapes = config.parameter_shapes()
    order = [*(name for name in shapes if name != "wte.weight"), "wte.weight"]
    sections: dict[tuple[str, str], Section] = {}
    position = 0

    def add(parameter: str, kind: str, n_bytes: int) -> None:
        nonlocal position
        sections[parameter, kind] = Section(parameter=parameter, kind=kind, begin=position, n_bytes=n_bytes)
        position += -(-n_bytes // _ALIGN) * _ALIGN

    for name in order:
        shape = shapes[name]
        format = format_of(name, len(shape), precision)
        padded = -(-shape[0] // native.PANEL) * native.PANEL
        if format is None:  # biases are read by whole panels
            add(name, "floats", 4 * (int(np.prod(shape)) if len(shape) > 1 else padded))
            continue
        add(name, "panels", native.panels_bytes(format, *shape))
        if format is Format.INT8:
            add(name, "scales", 4 * padded)
    return Layout(sections=sections, n_bytes=position)


def format_of(parameter: str, n_dimensions: int, precision: Precision) -> Format | None:
    """How a parameter is packed; None for plain float32."""
    if n_dimensions == 1 or parameter == "wpe.weight":
        return None
    return precision.head if parameter == "wte.weight" else precision.layers


def _importance(name: str, stored: StoredModel) -> NDArray[np.float32] | None:
    """The mean square of what each input of a matrix is, as far as the weights alone tell it.

    After LayerNorm an input is weight * z + bias with z of mean square 1.
    """
    layer, _, matrix = (
        name.partition(".attn.c_attn.") if ".attn.c_attn." in name else name.partition(".mlp.c_fc.")
    )
    if not matrix:
        return None  # the other matrices read what no weight tells
    norm = f"{layer}.ln_1" if ".attn." in name else f"{layer}.ln_2"
    weight = np.asarray(stored.arrays[f"{norm}.weight"])
    bias = np.asarray(stored.arrays[f"{norm}.bias"])
    return (weight**2 + bias**2).astype(np.float32)


def _body(stored: StoredModel, precision: Precision, n_threads: int) -> Iterator[NDArray[np.uint8]]:
    """The sections' bytes with the gaps between them, one parameter in memory at a time."""
    table = layout(stored.config, precision)
    position = 0
    packed: dict[str, NDArray[Any] | None] = {}
    for section in table.sections.values():
        if section.kind != "scales":
            array = np.asarray(stored.arrays[section.parameter], np.float32)
            format = format_of(section.parameter, array.ndim, precision)
            if format is None:
                packed = {"floats": array}
            else:
                importance = _importance(section.parameter, stored) if format is Format.INT4 else None
                panels, scales = native.pack(format, array, importance, n_threads)
                packed = {"panels": panels, "scales": scales}
        data = np.ascontiguousarray(packed[section.kind]).reshape(-1).view(np.uint8)
        assert section.begin == position and data.size <= section.n_bytes
        padded = -(-section.n_bytes // _ALIGN) * _ALIGN
        yield data
        yield np.zeros(padded - data.size, np.uint8)
        position += padded


def _prefix(config: GPTConfig, precision: Precision, source: str) -> bytes:
    fields = {"version": VERSION, "config": to_dict(config), "precision": str(precision), "source": source}
    header = json.dumps(fields, sort_keys=True).encode()
    prefix = MAGIC + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header
    return prefix + bytes(-len(prefix) % _BODY_ALIGN)


def pack_model(
    stored: StoredModel, precision: Precision, path: Path, *, source: str = "", n_threads: int = 1
) -> None:
    """Write `stored` packed at `path`, published by rename. `source` names what it was made of.

    Raises CheckpointError for wrong arrays, StorageError, MissingDependencyError.
    """
    check_arrays(stored.config, stored.arrays)
    write_stream(path, _file_chunks(stored, precision, source, n_threads))


def _file_chunks(
    stored: StoredModel, precision: Precision, source: str, n_threads: int
) -> Iterator[memoryview]:
    digest = BlockDigest()
    prefix = _prefix(stored.config, precision, source)
    digest.update(memoryview(prefix))
    yield memoryview(prefix)
    for piece in _body(stored, precision, n_threads):
        if piece.size:
            digest.update(piece.data)
            yield piece.data
    yield memoryview(digest.digest())


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A packed file, mapped. `body` lives as long as this object."""

    config: GPTConfig
    precision: Precision
    source: str
    body: NDArray[np.uint8]
    n_file_bytes: int


def open_packed(path: Path, *, verify: bool = True, huge_pages: bool = True) -> PackedModel:
    """Bring a packed file to memory; its header is checked, and unless `verify` is false every byte.

    With `huge_pages` it is read into huge pages of this process, which a step reads a fifth to a third faster
    than the small pages of a mapped file; without, it is mapped and shared with every process that maps it.

    Raises CheckpointError naming the file and what is wrong with it.
    """

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"packed model '{path}': {reason}{_REMEDY}")

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX_BYTES)
            if len(prefix) < _PREFIX_BYTES or prefix[: len(MAGIC)] != MAGIC:
                raise refuse("not a packed model")
            n_header = int.from_bytes(prefix[len(MAGIC) : len(MAGIC) + 8], "little")
            if n_header > _MAX_HEADER_BYTES:
                raise refuse(f"the header claims {n_header} bytes")
            header = file.read(n_header)
            if hashlib.sha256(header).digest() != prefix[-32:]:
                raise refuse("the header is damaged")
            try:
                fields = json.loads(header)
                if fields["version"] != VERSION:
                    raise refuse(f"layout version {fields['version']}, this program reads {VERSION}")
                config = from_dict(GPTConfig, fields["config"])
                precision, source = Precision(fields["precision"]), str(fields["source"])
            except (ConfigError, ValueError, KeyError, TypeError):
                raise refuse("the header is not one of ours") from None
            begin = -(-(_PREFIX_BYTES + n_header) // _BODY_ALIGN) * _BODY_ALIGN
            n_body = layout(config, precision).n_bytes
            if size != begin + n_body + 32:
                raise refuse(f"it has {size} bytes, {begin + n_body + 32} are due")
            if huge_pages:
                mapped, right = in_huge_pages(file, size, verify)
            else:
                mapped = mapped_file(file, size)
                right = is_whole(memoryview(mapped)) if verify else True
    except OSError as error:
        raise CheckpointError(f"cannot open packed model '{path}': {error.strerror or error}") from None
    if not right:
        raise refuse("its bytes are not those that were written")
    body = np.frombuffer(mapped, np.uint8, n_body, begin)
    return PackedModel(config=config, precision=precision, source=source, body=body, n_file_bytes=size)


def weights_hash(stored: StoredModel) -> str:
    """SHA-256 of a model's config and weights, in hex: a `source` for one whose files carry no hash."""
    digest = hashlib.sha256(json.dumps(to_dict(stored.config), sort_keys=True).encode())
    for name in stored.config.parameter_shapes():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(stored.arrays[name], np.float32).data)
    return digest.hexdigest()


def packed_path(folder: Path | None, source: str, precision: Precision) -> Path:
    """Where the packed form of `source` (a hash of the weights) is kept: beside the model if that can be.

    That is `folder`/packed when it is there or can be made, else `$WAFERGPT_CACHE`/packed.
    """
    name = f"{precision}-{hashlib.sha256(f'{VERSION}:{source}'.encode()).hexdigest()[:24]}{SUFFIX}"
    elsewhere = cache_dir().parent / "packed" / name
    if folder is None or elsewhere.exists():
        return elsewhere
    beside = folder / "packed"
    if (beside / name).exists() or os.access(beside if beside.exists() else folder, os.W_OK | os.X_OK):
        return beside / name
    return elsewhere


def find_packed(folder: Path | None, source: str, precision: Precision) -> PackedModel | None:
    """The packed model that `pack_once` kept, if it is there; one that is damaged is warned of."""
    path = packed_path(folder, source, precision)
    try:
        found = open_packed(path) if path.exists() else None
    except CheckpointError as error:
        reason = str(error).removesuffix(_REMEDY)
        warnings.warn(f"{reason}; it is made anew from the model", stacklevel=2)
        return None
    return found if found is not None and found.source == source else None


def pack_once(
    stored: StoredModel, precision: Precision, *, folder: Path | None, source: str, n_threads: int = 1
) -> Path:
    """The packed file of a model with that `source` hash, made if it is not there or not readable.

    Beside a model one file is kept for each precision: that of the newest weights. Raises StorageError,
    CheckpointError, MissingDependencyError.
    """
    path = packed_path(folder, source, precision)
    if find_packed(folder, source, precision) is not None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    pack_model(stored, precision, path, source=source, n_threads=n_threads)
    if folder is not None and path.parent.parent == folder:
        for other in path.parent.glob(f"{precision}-*{SUFFIX}"):
            if other != path:
                with contextlib.suppress(OSError):
                    other.unlink()
    return path
