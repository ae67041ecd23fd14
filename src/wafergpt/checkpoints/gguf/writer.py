"""A model -> one GGUF file of architecture `gpt2`, which llama.cpp runs.

Tensors stream from the model's arrays row by row, are converted and written at once, so the memory needed
is that of one chunk whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wafergpt.checkpoints.files import CHUNK_BYTES, FileDigest, write_stream
from wafergpt.checkpoints.gguf import blocks
from wafergpt.checkpoints.gguf.layout import (
    BLOCKS,
    FILE_TYPES,
    GGUFKind,
    TensorInfo,
    TensorType,
    Value,
    ValueType,
    encode_header,
    padding,
    row_bytes,
)
from wafergpt.checkpoints.gguf.names import POSITION_EMBEDDING, TOKEN_EMBEDDING, tensor_names
from wafergpt.checkpoints.gguf.vocabulary import tokenizer_metadata
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import require
from wafergpt.model.config import GPTConfig

ARCHITECTURE = "gpt2"
# Ours, unknown to llama.cpp: its graph has the tanh GELU whatever the weights were trained with.
TRAINED_ACTIVATION_KEY = "wafergpt.trained_activation"
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION of ggml.h


def write_gguf(model: StoredModel, path: Path, *, kind: GGUFKind = GGUFKind.F32) -> FileDigest:
    """Write `path`, whole or not at all; returns its size and SHA-256. muP is folded in first.

    llama.cpp computes every GPT-2 with the tanh GELU: for an erf model the file stands for a slightly
    different function, which whoever offers the export has to measure. Raises ConfigError for a model that
    the kind or llama.cpp cannot hold, CheckpointError for a tokenizer larger than the model or a value the
    kind cannot hold, NonFiniteError, MissingDependencyError, StorageError.
    """
    check_exportable(model.config, kind)
    folded = fold(model)
    if any(blocks.needs_library(plan.type) for plan in tensor_plan(folded.config, kind)):
        blocks.quantizers()  # missing: say so before anything is written
    return write_stream(path, _file(folded, kind))


def check_exportable(config: GPTConfig, kind: GGUFKind) -> None:
    """Raise ConfigError unless `config` can be a GGUF file of `kind`."""
    require(
        config.ffn_width == 4 * config.d_model,
        f"d_ffn = {config.ffn_width} is not 4 * d_model = {4 * config.d_model}; "
        "llama.cpp's tools take a GPT-2's hidden layer to be that wide, so this model is not written as GGUF",
    )
    block = BLOCKS[_matrix_type(kind)].n_values
    require(
        config.d_model % block == 0,
        f"{kind} stores rows in blocks of {block} values and d_model = {config.d_model} is not a multiple of "
        f"{block}; write f16 or bf16 instead",
    )


def tensor_plan(config: GPTConfig, kind: GGUFKind) -> list[TensorInfo]:
    """Every tensor of the file with its type and place, in the model's order."""
    plan: list[TensorInfo] = []
    shapes, position = config.parameter_shapes(), 0
    for name, ours in tensor_names(config).items():
        shape, stored = shapes[ours], _tensor_type(name, len(shapes[ours]), kind)
        n_bytes = shape[0] * row_bytes(shape[1], stored) if len(shape) == 2 else row_bytes(shape[0], stored)
        plan.append(TensorInfo(name=name, shape=shape, type=stored, offset=position, n_bytes=n_bytes))
        position += n_bytes + padding(n_bytes)
    return plan


def _matrix_type(kind: GGUFKind) -> TensorType:
    return TensorType[kind.name]


def _tensor_type(name: str, n_dimensions: int, kind: GGUFKind) -> TensorType:
    if n_dimensions == 1 or name == POSITION_EMBEDDING:
        return TensorType.F32
    if name == TOKEN_EMBEDDING and kind is GGUFKind.Q4_0:
        return TensorType.Q8_0
    return _matrix_type(kind)


def metadata(model: StoredModel, kind: GGUFKind) -> dict[str, Value]:
    """The file's keys; `model` is already folded."""
    config = model.config

    def integer(value: int) -> Value:
        return Value(type=ValueType.UINT32, value=value)

    keys = {
        "general.architecture": Value(type=ValueType.STRING, value=ARCHITECTURE),
        "general.type": Value(type=ValueType.STRING, value="model"),
        "general.file_type": integer(FILE_TYPES[kind]),
        "general.quantization_version": integer(_QUANTIZATION_VERSION),
        "gpt2.block_count": integer(config.n_layers),
        "gpt2.context_length": integer(config.max_seq_len),
        "gpt2.embedding_length": integer(config.d_model),
        "gpt2.feed_forward_length": integer(config.ffn_width),
        "gpt2.attention.head_count": integer(config.n_heads),
        "gpt2.attention.layer_norm_epsilon": Value(type=ValueType.FLOAT32, value=config.layer_norm_eps),
        "gpt2.vocab_size": integer(config.vocab_size),
        TRAINED_ACTIVATION_KEY: Value(type=ValueType.STRING, value=config.activation.value),
    }
    name = model.provenance.get("name")
    if isinstance(name, str):
        keys["general.name"] = Value(type=ValueType.STRING, value=name)
    return keys | tokenizer_metadata(model.tokenizer, model.chat_template, config.vocab_size)


def _file(model: StoredModel, kind: GGUFKind) -> Iterator[memoryview]:
    plan = tensor_plan(model.config, kind)
    ours = tensor_names(model.config)
    yield memoryview(encode_header(metadata(model, kind), plan))
    for tensor in plan:
        array = model.arrays[ours[tensor.name]]
        rows = array if array.ndim == 2 else array[None]  # [n_rows, n_values]
        step = blocks.rows_per_chunk(rows.shape[1], tensor.type, CHUNK_BYTES)
        for start in range(0, rows.shape[0], step):
            chunk = np.ascontiguousarray(rows[start : start + step], np.float32)
            yield blocks.encode(chunk, tensor.type, ours[tensor.name]).reshape(-1).data
        yield memoryview(bytes(padding(tensor.n_bytes)))
