"""Read `.mdl` checkpoints: HDF5 files with one data set per flattened, dotted key of the training state.

Files of releases 1.7 to 2.0 carry a pickled description of their tree, which is never looked at; the keys
themselves say enough. A `.mdl` has no configuration: heads, activation and muP come from a YAML beside it.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.modelzoo.config import read_model_config
from wafergpt.checkpoints.modelzoo.names import HEAD, count_layers, current_name, zoo_names
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.checkpoints.untrusted.chat_template import MAX_TEMPLATE_BYTES, check_template
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.checkpoints.untrusted.tokenizer import MAX_TOKENIZER_BYTES, MAX_TOKENIZER_VALUES
from wafergpt.config import from_dict
from wafergpt.errors import CheckpointError, ConfigError, DataError
from wafergpt.hdf5.opened import OpenedHDF5
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.tokenizer_file import tokenizer_from_form

CONFIG_ATTRIBUTE = "wafergpt_config"  # what `write_mdl` adds, so that its files need no YAML
TOKENIZER_DATASET = "wafergpt_tokenizer"  # a tokenizer.json as bytes, for the same reason
TEMPLATE_DATASET = "wafergpt_chat_template"
VERSION_ATTRIBUTE = "__version__"
RELEASE_ATTRIBUTE = "__cstorch_version__"
SUCCESS_ATTRIBUTE = "__SUCCESS__"
METADATA_SUFFIX = ".__metadata__"
FIRST_JSON_VERSION = 0.5  # from here on a file says whether it was written to its end
_COMPARED_ROWS = 4096
_MAX_RATIO = 16  # trained float32 weights pack by a tenth
_MODEL_PARTS = ("model.", "embedding_layer.", "transformer_decoder.", "lm_head.", "ln_f.")

Float32 = NDArray[np.float32]


def read_mdl(path: Path, *, config: GPTConfig | None = None, config_file: Path | None = None) -> StoredModel:
    """The model of a `.mdl` file, arrays read when asked for (maps of the file where it is not packed).

    The configuration is `config`, or that of `config_file`, or the one the file carries (ours do), or that of
    the YAML of the same name beside it. A tokenizer and a chat template are only in files of ours.

    Raises CheckpointError naming the file and the rule, ConfigError for the YAML, MissingDependencyError.
    """
    path = Path(path)
    file = OpenedHDF5(path, _refuse, max_ratio=_MAX_RATIO)
    try:
        notes: list[str] = []
        _check_complete(file)
        tensors, dropped = _model_keys(file)
        if dropped:
            groups = ", ".join(f"{name} ({n})" for name, n in sorted(dropped.items()))
            notes.append(f"not part of the model, left in the file: {groups}")
        n_layers = count_layers(list(tensors))
        config = _config(file, config, config_file, n_layers, notes)
        sources = _match(file, config, tensors, notes)
        return StoredModel(
            config=config,
            arrays=LazyArrays(_makers(file, config, sources)),
            tokenizer=_tokenizer(file, notes),
            chat_template=_chat_template(file),
            provenance=_provenance(file),
            notes=tuple(notes),
        )
    except BaseException:
        file.close()
        raise


def _refuse(reason: str) -> NoReturn:
    raise CheckpointError(reason)


def _check_complete(file: OpenedHDF5) -> None:
    version = file.attribute(VERSION_ATTRIBUTE)
    if version is None:
        return  # release 1.7
    try:
        number = float(version)
    except (TypeError, ValueError):
        file.refuse(f"{VERSION_ATTRIBUTE} is {version!r:.40}, not a number")
    if number >= FIRST_JSON_VERSION and not file.attribute(SUCCESS_ATTRIBUTE):
        file.refuse("was not written to its end: __SUCCESS__ is not set")


def _model_keys(file: OpenedHDF5) -> tuple[dict[str, list[str]], Counter[str]]:
    """Current name -> data sets that hold it, for the model's keys; how many others there are, by group."""
    tensors: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    for name in file.names():
        key = unquote(name)
        if key.startswith(_MODEL_PARTS):
            tensors.setdefault(current_name(key), []).append(name)
        elif key not in (TOKENIZER_DATASET, TEMPLATE_DATASET):
            dropped[key.split(".", 1)[0][:40]] += 1
    if not tensors:
        file.refuse("holds no model: no key starts with 'model.' or 'transformer_decoder.'")
    return tensors, dropped


def _config(
    file: OpenedHDF5, config: GPTConfig | None, config_file: Path | None, n_layers: int, notes: list[str]
) -> GPTConfig:
    embedded = file.attribute(CONFIG_ATTRIBUTE) if config is None and config_file is None else None
    if config_file is None and embedded is None:
        beside = file.path.with_suffix(".yaml")
        config_file = beside if config is None and beside.is_file() else None
    if config is not None:
        found = config
    elif config_file is not None:
        found, more = read_model_config(config_file)
        notes.append(f"the model's configuration is that of '{config_file}'")
        notes += more
    elif embedded is not None:
        try:
            found = from_dict(GPTConfig, parse_json(str(embedded).encode()))
        except (ValueError, ConfigError) as error:
            file.refuse(f"the attribute '{CONFIG_ATTRIBUTE}' is damaged: {error}")
    else:
        file.refuse(
            "does not say how many heads, which activation or which muP values its model has; put the YAML it"
            f" was trained with beside it as '{file.path.with_suffix('.yaml').name}'"
        )
    if found.n_layers != n_layers:
        file.refuse(f"holds {n_layers} layers, the configuration says {found.n_layers}")
    return found


def _match(
    file: OpenedHDF5, config: GPTConfig, tensors: dict[str, list[str]], notes: list[str]
) -> dict[str, str]:
    """Current name -> the data set to read; all are there, of their shape and type, and none is left over."""
    if "embedding_layer.word_embeddings.weight" not in tensors and HEAD in tensors:
        tensors["embedding_layer.word_embeddings.weight"] = tensors.pop(
            HEAD
        )  # tied: either may hold the data
    sources: dict[str, str] = {}
    for name, shape in config.parameter_shapes().items():
        parts = zoo_names(name)
        part_shape = (shape[0] // len(parts), *shape[1:])
        for part in parts:
            if part not in tensors:
                file.refuse(f"has no tensor '{part}' (ours: {name})")
            for data_set in tensors[part]:
                _check_tensor(file, data_set, part_shape)
            first, *others = tensors.pop(part)
            for other in others:
                _check_equal(file, first, other)
                notes.append(f"'{unquote(other)}' is the same as '{unquote(first)}' and was dropped")
            sources[part] = first
    for data_set in tensors.pop(HEAD, []):
        embedding = sources["embedding_layer.word_embeddings.weight"]
        _check_tensor(file, data_set, (config.vocab_size, config.d_model))
        _check_equal(file, embedding, data_set)
        notes.append(
            f"the head '{unquote(data_set)}' equals the token embedding, as it must, and was dropped"
        )
    if tensors:
        extra = unquote(next(iter(tensors.values()))[0])
        file.refuse(f"holds '{extra:.80}', which a GPT of this configuration does not have")
    return sources


def _check_tensor(file: OpenedHDF5, data_set: str, shape: tuple[int, ...]) -> None:
    found = file.shape(data_set)
    if found != shape:
        file.refuse(f"'{unquote(data_set)}' has shape {list(found)}, the configuration needs {list(shape)}")
    dtype = file.dtype(data_set)
    is_float = dtype.kind == "f" and dtype.itemsize in (2, 4)
    if not is_float and not (dtype.kind in "iu" and dtype.itemsize == 2 and _is_bfloat16(file, data_set)):
        file.refuse(f"'{unquote(data_set)}' holds {dtype}; read are float32, float16 and bfloat16")


def _is_bfloat16(file: OpenedHDF5, data_set: str) -> bool:
    """Whether 16-bit integers are bfloat16 bits (cerebras.appliance stores them so)."""
    if bool(file.attribute("is_bfloat16", of=data_set)):
        return True
    dtypes = file.attribute("dtypes", of=data_set)
    return dtypes is not None and "torch.bfloat16" in [str(item) for item in np.ravel(dtypes)]


def _read(file: OpenedHDF5, data_set: str, start: int = 0, stop: int | None = None) -> Float32:
    """Rows as finite float32; a view where the file holds just that."""
    array = file.read(data_set, start, stop)
    if array.dtype.kind in "iu":  # bfloat16 is the upper half of a float32
        bits = array.astype(array.dtype.newbyteorder("=")).view(np.uint16)
        array = (bits.astype(np.uint32) << 16).view(np.float32)
    values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        file.refuse(f"'{unquote(data_set)}' holds nan or infinity")
    return values


def _check_equal(file: OpenedHDF5, first: str, other: str) -> None:
    for start in range(0, file.shape(first)[0], _COMPARED_ROWS):
        stop = start + _COMPARED_ROWS
        if not np.array_equal(_read(file, first, start, stop), _read(file, other, start, stop)):
            file.refuse(f"'{unquote(other)}' differs from '{unquote(first)}'; they must be the same")


def _makers(
    file: OpenedHDF5, config: GPTConfig, sources: Mapping[str, str]
) -> dict[str, Callable[[], Float32]]:
    return {
        name: functools.partial(_join, file, [sources[part] for part in zoo_names(name)])
        for name in config.parameter_shapes()
    }


def _join(file: OpenedHDF5, data_sets: list[str]) -> Float32:
    """One array, or q, k and v stacked: [3D, D] or [3D]."""
    parts = [_read(file, data_set) for data_set in data_sets]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tokenizer(file: OpenedHDF5, notes: list[str]) -> Tokenizer | None:
    """Built anew from a closed schema, as that of any folder nobody vouches for."""
    data = _bytes(file, TOKENIZER_DATASET, MAX_TOKENIZER_BYTES)
    if data is None:
        notes.append("the file holds no tokenizer")
        return None
    try:
        tokenizer, more = tokenizer_from_form(parse_json(data, max_values=MAX_TOKENIZER_VALUES))
    except (ValueError, DataError) as error:
        file.refuse(f"'{TOKENIZER_DATASET}': {error}")
    notes += more
    return tokenizer


def _chat_template(file: OpenedHDF5) -> str | None:
    data = _bytes(file, TEMPLATE_DATASET, MAX_TEMPLATE_BYTES)
    if data is None:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        file.refuse(f"'{TEMPLATE_DATASET}' is not UTF-8: {error}")
    check_template(text, f"'{file.path}'")
    return text


def _bytes(file: OpenedHDF5, name: str, max_bytes: int) -> bytes | None:
    if name not in file.names():
        return None
    shape = file.shape(name)
    if file.dtype(name) != np.uint8 or len(shape) != 1 or shape[0] > max_bytes:
        file.refuse(f"'{name}' is not a row of at most {max_bytes} bytes")
    return file.read(name).tobytes()


def _provenance(file: OpenedHDF5) -> dict[str, Any]:
    """What the file says about itself: release, and the step counter where it is a plain number."""
    found: dict[str, Any] = {"format": "Cerebras .mdl"}
    release = file.attribute(RELEASE_ATTRIBUTE)
    if isinstance(release, str):
        found["cerebras_pytorch"] = release[:40]
    step = _step(file)
    return found | ({"step": step} if step is not None else {})


def _step(file: OpenedHDF5) -> int | None:
    text = file.attribute(f"global_step{METADATA_SUFFIX}")
    if isinstance(text, str) and len(text) < 10_000:
        try:
            value = json.loads(text)[f"global_step{METADATA_SUFFIX}"]["scalar_value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return value if type(value) is int else None
    if "global_step" in file.names() and file.shape("global_step") == ():
        value = file.read("global_step")
        return int(value) if value.dtype.kind in "iu" else None
    return None
