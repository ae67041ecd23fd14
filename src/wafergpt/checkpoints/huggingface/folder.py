"""A Hugging Face model folder <-> `StoredModel`.

Reading goes through `checkpoints.untrusted`: only the files named here are opened, and no code in the folder
is looked at. Writing makes the whole folder under another name first and renames it, so that it is there
entirely or not at all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints import files as disk
from wafergpt.checkpoints.files import FileDigest, Kind, OSFiles
from wafergpt.checkpoints.huggingface import card as cards
from wafergpt.checkpoints.huggingface.card import CardFacts
from wafergpt.checkpoints.huggingface.config import FILE_NAME as CONFIG_NAME
from wafergpt.checkpoints.huggingface.config import MissingScale, from_hf, to_hf
from wafergpt.checkpoints.huggingface.keys import GENERATION_KEYS
from wafergpt.checkpoints.huggingface.names import is_transposed, layout
from wafergpt.checkpoints.huggingface.tokenizer_files import json_bytes, tokenizer_files
from wafergpt.checkpoints.huggingface.weights import WeightsDtype, write_weights
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.checkpoints.untrusted.chat_template import TEMPLATE_NAME, read_chat_template
from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.checkpoints.untrusted.shards import AllTensors, open_tensors
from wafergpt.checkpoints.untrusted.tokenizer import read_tokenizer
from wafergpt.config import require
from wafergpt.errors import CheckpointError, ConfigError, StorageError
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer

GENERATION_NAME = "generation_config.json"
DEFAULT_SHARD_BYTES = 50_000_000_000  # Transformers 5's default in save_pretrained
_READABLE = ("F32", "F16", "BF16", "F64")
_COMPARED_ROWS = 256


def read_folder(path: Path | str, *, mup_logit_scale: MissingScale | str | None = None) -> StoredModel:
    """The model in a Hugging Face folder: config.json, safetensors (one file or shards), tokenizer files.

    Arrays are float32 and come one at a time: views of a private, writable map of the file where it holds
    float32, so they cost no memory until touched; F16, BF16 and F64 are converted when asked for. Keep the
    files as they are while the model is in use. `mup_logit_scale`: see `MissingScale`. Raises CheckpointError
    naming the file and the rule, DataError for a tokenizer, ConfigError for a wrong `mup_logit_scale`.
    """
    with UntrustedFolder(path) as folder:
        if not folder.has(CONFIG_NAME):
            raise CheckpointError(f"'{folder.path}' is not a model folder: it has no {CONFIG_NAME}")
        document = folder.read_json(CONFIG_NAME)
        try:
            config, notes = from_hf(document, mup_logit_scale=mup_logit_scale)
        except CheckpointError as error:
            raise CheckpointError(f"{folder.path}/{error}") from None
        _refuse_old_weights(folder)
        tensors = open_tensors(folder)
        arrays, weight_notes = _arrays(folder, config, tensors)
        tokenizer, tokenizer_notes = read_tokenizer(folder)
        template, template_notes = read_chat_template(folder)
        notes += (*weight_notes, *tokenizer_notes, *template_notes)
        if tokenizer is not None:
            notes += _vocabulary_notes(folder, config, tokenizer)
        notes += _sampling_notes(folder)
    return StoredModel(
        config=config,
        arrays=arrays,
        tokenizer=tokenizer,
        chat_template=template,
        provenance={"source": str(path), "format": "Hugging Face"},
        notes=notes,
    )


def _refuse_old_weights(folder: UntrustedFolder) -> None:
    names = folder.names()
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return
    old = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if old:
        raise CheckpointError(
            f"{folder.path}/{old[0]}: old weights in pickle format are not loaded; "
            f"convert them first: wafergpt convert '{folder.path}' NEW_FOLDER"
        )


def _arrays(
    folder: UntrustedFolder, config: GPTConfig, tensors: AllTensors
) -> tuple[LazyArrays, tuple[str, ...]]:
    """Our arrays by name, made when asked for; a stored head is compared with the embedding now."""
    try:
        found = layout(config, {name: tensors.shape(name) for name in tensors.names})
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}/{tensors.main}: {error}") from None
    notes = list(found.notes)
    kinds = {tensors.dtype_name(name) for name in found.sources.values()}
    for name in found.sources.values():
        if tensors.dtype_name(name) not in _READABLE:
            raise CheckpointError(
                f"{tensors.label(name)}: tensor '{name}' holds {tensors.dtype_name(name)}, not one of "
                f"{', '.join(_READABLE)}"
            )
    if kinds != {"F32"}:
        notes.append(f"weights of type {', '.join(sorted(kinds))} read as float32")
    if found.stored_head is not None:
        _check_tied(tensors, found.stored_head, found.sources["wte.weight"])
        notes.append(f"{found.stored_head} dropped: it equals the token embedding it is tied to")

    def maker(name: str, theirs: str) -> Callable[[], NDArray[np.float32]]:
        def make() -> NDArray[np.float32]:
            array = tensors.array(theirs).astype(np.float32, copy=False)
            return array.T if is_transposed(name) else array

        return make

    return LazyArrays({name: maker(name, theirs) for name, theirs in found.sources.items()}), tuple(notes)


def _check_tied(tensors: AllTensors, head: str, embedding: str) -> None:
    a, b = tensors.array(head), tensors.array(embedding)
    for start in range(0, a.shape[0], _COMPARED_ROWS):
        rows = slice(start, start + _COMPARED_ROWS)
        if not np.array_equal(a[rows], b[rows]):
            raise CheckpointError(
                f"{tensors.label(head)}: '{head}' differs from '{embedding}'; a model of this family has "
                "one matrix for both (tie_word_embeddings)"
            )


def _sampling_notes(folder: UntrustedFolder) -> tuple[str, ...]:
    """What the folder says of sampling, which is set where text is generated."""
    if not folder.has(GENERATION_NAME):
        return ()
    settings = sorted(GENERATION_KEYS & folder.read_json(GENERATION_NAME).keys())
    return (f"{GENERATION_NAME}: {', '.join(settings)} not used",) if settings else ()


def _vocabulary_notes(folder: UntrustedFolder, config: GPTConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Text must never become an id that the model has no embedding for; special tokens are not in text."""
    special = {token.content for token in tokenizer.inner.get_added_tokens_decoder().values()}
    entries: dict[str, int] = tokenizer.inner.get_vocab(with_added_tokens=True)
    largest = max(index for token, index in entries.items() if token not in special)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{folder.path}/{CONFIG_NAME}: the model has {config.vocab_size} rows, the tokenizer ids up to "
            f"{largest}; they do not belong together"
        )
    if tokenizer.vocab_size > config.vocab_size:
        return (f"the tokenizer's special tokens from id {config.vocab_size} on have no embedding",)
    return ()


def write_folder(
    model: StoredModel,
    directory: Path | str,
    *,
    dtype: WeightsDtype | str = WeightsDtype.FLOAT32,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    card: CardFacts | None = None,
) -> dict[str, FileDigest]:
    """Write `model` as the folder that Transformers 5 writes and 4.x reads; returns each file's digest.

    A muP model is folded into a standard one (`checkpoints.mup_fold`). Memory: a few MiB of one array at a
    time, besides what the arrays themselves take when asked for. `directory` must not exist or be empty.
    Raises ConfigError, CheckpointError for arrays that do not fit the config, NonFiniteError, StorageError;
    `directory` is then as it was.
    """
    try:
        kind = WeightsDtype(dtype)
    except ValueError:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(WeightsDtype)}") from None
    require(max_shard_bytes >= 1, f"max_shard_bytes = {max_shard_bytes} must be at least 1")
    target = Path(directory).absolute()
    layer = OSFiles()
    standard = fold(model)
    small = _small_files(standard, kind, card or CardFacts(), target.name)
    try:
        disk.make_directories(layer, target.parent.resolve())
        target = target.parent.resolve() / target.name
        _require_free(layer, target)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        layer.mkdir(temporary)
        try:
            digests = write_weights(
                layer, temporary, standard.arrays, standard.config.parameter_shapes(), kind, max_shard_bytes
            )
            for name, data in small.items():
                digests[name] = disk.write_synced(layer, temporary / name, [memoryview(data)])
            disk.sync_directory(layer, temporary)
            layer.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove_tree(layer, temporary)
            raise
        disk.sync_directory(layer, target.parent)
    except StorageError:
        raise
    except OSError as error:
        raise disk.storage_error(f"cannot write '{target}'", error, "nothing was left behind") from error
    return digests


def _require_free(layer: OSFiles, target: Path) -> None:
    kind = layer.kind(target)
    empty = kind is Kind.DIRECTORY and not layer.list_directory(target)
    require(
        kind is Kind.MISSING or empty,
        f"'{target}' exists already; a model is written into a new folder or an empty one",
    )


def _small_files(model: StoredModel, dtype: WeightsDtype, facts: CardFacts, name: str) -> Mapping[str, bytes]:
    """Everything but the weights."""
    end_of_text = None if model.tokenizer is None else model.tokenizer.end_of_text_id
    config = to_hf(model.config, dtype=dtype.value, end_of_text_id=end_of_text)
    generation: dict[str, Any] = {"_from_model_config": True, "use_cache": True}
    if end_of_text is not None:
        generation |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    found = {
        CONFIG_NAME: json_bytes(config),
        GENERATION_NAME: json_bytes(generation),
        cards.FILE_NAME: cards.model_card(model, facts, name=name, dtype=dtype.value).encode(),
    }
    if model.tokenizer is not None:
        found |= tokenizer_files(model.tokenizer, model.config.max_seq_len)
    if model.chat_template is not None:
        found[TEMPLATE_NAME] = model.chat_template.encode()
    return found
