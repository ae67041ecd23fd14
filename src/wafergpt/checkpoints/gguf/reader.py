"""One GGUF file of architecture `gpt2` -> a model, in float32, one array at a time.

The file is mapped privately (copy on write): float32 tensors are views of it, other types are widened when
they are asked for. Only this package's own reader looks at the header.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.gguf import blocks
from wafergpt.checkpoints.gguf.header import Header, parse_header
from wafergpt.checkpoints.gguf.layout import TensorInfo, TensorType, Value, row_bytes
from wafergpt.checkpoints.gguf.names import HEAD, POSITION_EMBEDDING, TOKEN_EMBEDDING, tensor_names
from wafergpt.checkpoints.gguf.vocabulary import read_vocabulary
from wafergpt.checkpoints.gguf.writer import ARCHITECTURE, TRAINED_ACTIVATION_KEY
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.checkpoints.untrusted.folder import OpenFile
from wafergpt.errors import CheckpointError, ConfigError, DataError, StorageError, did_you_mean, shown
from wafergpt.model.config import Activation, GPTConfig
from wafergpt.units import MIB

_KNOWN_KEYS = (
    "gpt2.block_count",
    "gpt2.context_length",
    "gpt2.embedding_length",
    "gpt2.feed_forward_length",
    "gpt2.attention.head_count",
    "gpt2.attention.head_count_kv",
    "gpt2.attention.layer_norm_epsilon",
    "gpt2.vocab_size",
)
_FEWEST_BYTES = 24  # magic, version, two counts
_PIECE_BYTES = MIB  # what is scanned or widened at a time; stays in the second-level cache

Refuse = Callable[[str], NoReturn]


def read_gguf(path: Path) -> StoredModel:
    """The model that llama.cpp computes from `path`: standard parametrisation, tanh GELU.

    Values are what the file holds, so a quantised file gives dequantised weights. Raises CheckpointError with
    the file and the rule it breaks, MissingDependencyError for a quantised file without the `gguf` library,
    StorageError when the system cannot map it. Asking for an array raises CheckpointError if it holds nan or
    infinity.
    """
    file = _MappedFile(path)
    header = file.header
    config = _config(header, file.refuse)
    makers = {
        ours: functools.partial(file.array, header.tensors[name])
        for name, ours in tensor_names(config).items()
    }
    notes = (*_head_notes(file), *_activation_notes(header.metadata))
    try:
        vocabulary = read_vocabulary(header.metadata, config.vocab_size)
    except (CheckpointError, DataError) as error:
        file.refuse(str(error))
    if any(blocks.needs_library(info.type) for info in header.tensors.values()):
        blocks.quantizers()  # missing: say so now
    return StoredModel(
        config=config,
        arrays=LazyArrays(makers),
        tokenizer=vocabulary.tokenizer,
        chat_template=vocabulary.chat_template,
        provenance=_provenance(header.metadata),
        notes=(*notes, *vocabulary.notes),
    )


def read_header(path: Path) -> Header:
    """Only the metadata and the table of tensors. Raises CheckpointError, StorageError."""
    return _MappedFile(path).header


class _MappedFile:
    """An open GGUF file and its private mapping, which lives as long as this or any array from it."""

    def __init__(self, path: Path) -> None:
        try:
            # O_NONBLOCK: opening a FIFO in place of the file must not hang before it is refused.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be opened: {getattr(error, 'strerror', error)}") from None
        self._file = OpenFile(handle, str(path))
        self.refuse: Refuse = self._file.refuse
        if self._file.size_bytes < _FEWEST_BYTES:
            self.refuse(f"{self._file.size_bytes} bytes are too few for a GGUF file")
        try:
            region = mmap.mmap(handle, self._file.size_bytes, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"{path}: cannot be mapped into memory: {reason}") from None
        self._buffer = np.frombuffer(region, np.uint8)
        self.header = parse_header(self._buffer, str(path))

    def bytes_of(self, info: TensorInfo) -> NDArray[np.uint8]:
        """The tensor as it is stored, a view."""
        begin = self.header.data_start + info.offset
        return self._buffer[begin : begin + info.n_bytes]

    def array(self, info: TensorInfo) -> NDArray[np.float32]:
        """float32 in the tensor's shape: a writable view of the mapping for F32, else a new array.

        Raises CheckpointError if it holds nan or infinity, or the file was changed since it was opened.
        """
        stored = self.bytes_of(info)
        values = stored.view("<f4") if info.type is TensorType.F32 else self._widened(stored, info)
        if info.type is TensorType.F32:
            self._check_finite(info)
        self._file.check_unchanged()
        return values.reshape(info.shape)

    def _widened(self, stored: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
        rows = stored.reshape(-1, row_bytes(info.shape[-1], info.type))  # [n_rows, row_bytes]
        values = np.empty((rows.shape[0], info.shape[-1]), np.float32)
        step = blocks.rows_per_chunk(info.shape[-1], info.type, _PIECE_BYTES)
        for start in range(0, rows.shape[0], step):
            chunk = values[start : start + step]
            chunk[:] = blocks.decode(rows[start : start + step], info.type)
            self._require_finite(chunk, info)
        return values

    def _check_finite(self, info: TensorInfo) -> None:
        """Reads the file rather than the mapping, so that memory does not grow."""
        buffer = np.empty(min(_PIECE_BYTES, info.n_bytes), np.uint8)
        begin = self.header.data_start + info.offset
        for offset in range(0, info.n_bytes, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, info.n_bytes - offset)]
            self._file.read_at(begin + offset, piece.data)
            self._require_finite(piece.view("<f4"), info)

    def _require_finite(self, values: NDArray[np.float32], info: TensorInfo) -> None:
        if not np.isfinite(values).all():
            self.refuse(f"tensor '{info.name}' holds nan or infinity")


def _config(header: Header, refuse: Refuse) -> GPTConfig:
    """The shape, from the keys, and held against the tensors."""
    metadata = header.metadata

    def integer(key: str) -> int:
        value = metadata[key].value if key in metadata else refuse(f"the key '{key}' is missing")
        if type(value) is not int:
            refuse(f"'{key}' is not a whole number")
        return value

    _check_keys(metadata, refuse)
    n_layers, d_model = integer("gpt2.block_count"), integer("gpt2.embedding_length")
    n_heads = integer("gpt2.attention.head_count")
    if n_layers > len(header.tensors):
        refuse(f"gpt2.block_count = {n_layers}, but it has {len(header.tensors)} tensors")
    for name in (TOKEN_EMBEDDING, POSITION_EMBEDDING):
        if name not in header.tensors or len(header.tensors[name].shape) != 2:
            refuse(f"the tensor '{name}' is missing or not a matrix")
    vocab_size, width = header.tensors[TOKEN_EMBEDDING].shape
    if d_model != width or n_heads < 1 or d_model % n_heads:
        refuse(f"embedding_length = {d_model}, head_count = {n_heads} and embedding width {width} do not fit")
    if "gpt2.attention.head_count_kv" in metadata and integer("gpt2.attention.head_count_kv") != n_heads:
        refuse("it has fewer key-value heads than heads; GPT-2 has as many")
    if "gpt2.vocab_size" in metadata and integer("gpt2.vocab_size") != vocab_size:
        refuse(f"gpt2.vocab_size = {integer('gpt2.vocab_size')}, the embedding has {vocab_size} rows")
    try:
        config = GPTConfig(
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            d_ffn=integer("gpt2.feed_forward_length"),
            vocab_size=vocab_size,
            max_seq_len=integer("gpt2.context_length"),
            activation=Activation.GELU_TANH,
            layer_norm_eps=_epsilon(metadata, refuse),
        )
    except ConfigError as error:
        refuse(str(error))
    _check_tensors(header.tensors, config, refuse)
    return config


def _check_keys(metadata: Mapping[str, Value], refuse: Refuse) -> None:
    stored = metadata.get("general.architecture")
    if stored is None or stored.value != ARCHITECTURE:
        refuse(f"its architecture is {shown(stored and stored.value)}; only '{ARCHITECTURE}' is read")
    if "split.count" in metadata and metadata["split.count"].value not in (0, 1):
        refuse("it is one part of a split model; join them with llama.cpp's llama-gguf-split --merge")
    for key in metadata:
        if key.startswith(f"{ARCHITECTURE}.") and key not in _KNOWN_KEYS:
            guess = did_you_mean(key, _KNOWN_KEYS)
            refuse(f"the key '{key}' is not known and may change the computation{guess}")


def _epsilon(metadata: Mapping[str, Value], refuse: Refuse) -> float:
    key = "gpt2.attention.layer_norm_epsilon"
    value = metadata[key].value if key in metadata else None
    if not isinstance(value, float):
        refuse(f"'{key}' is missing or not a number")
    # Stored as float32: the shortest decimal that gives it back, so that 1e-5 is 1e-5 again.
    return float(str(np.float32(value)))


def _check_tensors(tensors: Mapping[str, TensorInfo], config: GPTConfig, refuse: Refuse) -> None:
    expected, shapes = tensor_names(config), config.parameter_shapes()
    for name in tensors:
        if name not in expected and name != HEAD:
            refuse(f"unknown tensor '{name}'{did_you_mean(name, list(expected))}")
    for name, ours in expected.items():
        if name not in tensors:
            refuse(f"the tensor '{name}' is missing")
        if tensors[name].shape != shapes[ours]:
            found, wanted = list(tensors[name].shape), list(shapes[ours])
            refuse(f"tensor '{name}' has shape {found}, the keys say {wanted}")


def _head_notes(file: _MappedFile) -> tuple[str, ...]:
    """A stored head must be the embedding again, for ours is tied; old converters wrote it twice."""
    head, embedding = file.header.tensors.get(HEAD), file.header.tensors[TOKEN_EMBEDDING]
    if head is None:
        return ()
    if (head.type, head.shape) == (embedding.type, embedding.shape):
        ours, theirs = file.bytes_of(embedding), file.bytes_of(head)
        starts = range(0, head.n_bytes, _PIECE_BYTES)
        if all(np.array_equal(ours[i : i + _PIECE_BYTES], theirs[i : i + _PIECE_BYTES]) for i in starts):
            return (f"dropped '{HEAD}': it is '{TOKEN_EMBEDDING}' again (the head is tied)",)
    file.refuse(f"'{HEAD}' is not '{TOKEN_EMBEDDING}'; a head of its own is not supported")


def _activation_notes(metadata: Mapping[str, Value]) -> tuple[str, ...]:
    stored = metadata.get(TRAINED_ACTIVATION_KEY)
    if stored is None or stored.value == Activation.GELU_TANH.value:
        return ()
    trained = f"the weights were trained with {shown(stored.value)}"
    return (f"read with the tanh GELU, as llama.cpp computes it; {trained}",)


def _provenance(metadata: Mapping[str, Value]) -> dict[str, Any]:
    name = metadata.get("general.name")
    return {} if name is None else {"name": name.value}
