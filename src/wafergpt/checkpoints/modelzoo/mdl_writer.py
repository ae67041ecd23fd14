"""Write `.mdl` checkpoints in the layout of `cerebras.pytorch.save`, format 0.5 (releases 2.9 and 2.10).

The HDF5 library lays out an empty file; the weights are then written to their places by this package, one
array at a time: memory stays flat, and a full disk is an error here, not inside the library.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from wafergpt.checkpoints.files import CHUNK_BYTES, OSFiles, storage_error, sync_directory, write_atomic
from wafergpt.checkpoints.modelzoo.mdl import (
    CONFIG_ATTRIBUTE,
    FIRST_JSON_VERSION,
    METADATA_SUFFIX,
    RELEASE_ATTRIBUTE,
    SUCCESS_ATTRIBUTE,
    TEMPLATE_DATASET,
    TOKENIZER_DATASET,
    VERSION_ATTRIBUTE,
)
from wafergpt.checkpoints.modelzoo.model_section import write_model
from wafergpt.checkpoints.modelzoo.names import HEAD, zoo_names
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import to_dict
from wafergpt.errors import StorageError
from wafergpt.hdf5.opened import load_h5py
from wafergpt.model.config import GPTConfig

RELEASE = "2.10.0"  # whose layout this is
_PREFIX = "model.model."  # the training state's `model`, whose module is again called `model`
_SPEC = "__spec__"
_OBJECTS = "__objects__"
_RTFX_FLOAT32 = 11  # cerebras.appliance.pb.ws.rtfx_pb2, RtFxProto.T_F32
_ALIGNMENT_BYTES = 64  # so that the weights can be mapped in place


def write_mdl(model: StoredModel, path: Path) -> tuple[str, ...]:
    """Write `path` and, unless there is one, the YAML of the model beside it; returns notes, one line each.

    muP is kept as it is: the Model Zoo has it. Config, tokenizer and chat template go along in names of our
    own, which the Zoo's loader does not look at. Both files appear whole or not at all. Raises StorageError,
    CheckpointError (from the source's arrays), MissingDependencyError.
    """
    h5py = load_h5py()
    path = Path(path)
    path = path.parent.resolve() / path.name
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            offsets = _lay_out(h5py, temporary, model)
            _fill(temporary, model, offsets)
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(OSFiles(), path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(f"cannot write '{path}'", error, "nothing was left behind") from error
    notes = ["a .mdl file of ours holds no optimiser state, so a Model Zoo run starts a new one"]
    beside = path.with_suffix(".yaml")
    if os.path.lexists(beside):  # it may be the run's own, written by hand
        notes.append(f"'{beside.name}' was there already and was left as it is")
    else:
        text = yaml.safe_dump({"trainer": {"init": {"model": write_model(model.config)}}}, sort_keys=False)
        write_atomic(beside, text.encode())
    return tuple(notes)


def _parts(config: GPTConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """(our name, key in the file, first row of our array, shape) of every data set."""
    for name, shape in config.parameter_shapes().items():
        keys = zoo_names(name)
        rows = shape[0] // len(keys)
        for i, key in enumerate(keys):
            yield name, _PREFIX + key, i * rows, (rows, *shape[1:])


def _lay_out(h5py: Any, path: Path, model: StoredModel) -> dict[str, int]:
    """Make the file with every attribute and room for every data set; key -> where its bytes belong."""
    config, offsets = model.config, dict[str, int]()
    with h5py.File(
        path, "x", libver=("v108", "latest"), alignment_threshold=1, alignment_interval=_ALIGNMENT_BYTES
    ) as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.CONTIGUOUS)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        tied = _PREFIX + zoo_names("wte.weight")[0]
        for _, key, _, shape in _parts(config):
            space = h5py.h5s.create_simple(shape)
            low = h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, space, plist)
            offsets[key] = int(low.get_offset())
            metadata = _metadata(shape)
            file[key].attrs.update(metadata)
            file.attrs[key + METADATA_SUFFIX] = _described(key, metadata)
        head = _PREFIX + HEAD
        linked = {"key": tied, "__LINKED__": True, "__TYPE__": "LinkedObject", "__NONE__": True}
        file.attrs[head + METADATA_SUFFIX] = _described(head, linked)
        names = [key.removeprefix("model.") for key in (*offsets, head)]
        file.attrs[_SPEC] = json.dumps([{"model": dict.fromkeys(names, "*")}, _tree_spec({"model": names})])
        file.attrs[VERSION_ATTRIBUTE] = FIRST_JSON_VERSION
        file.attrs[RELEASE_ATTRIBUTE] = RELEASE
        file.attrs[CONFIG_ATTRIBUTE] = json.dumps(to_dict(config))
        if model.tokenizer is not None:
            file[TOKENIZER_DATASET] = np.frombuffer(model.tokenizer.to_bytes(), np.uint8)
        if model.chat_template is not None:
            file[TEMPLATE_DATASET] = np.frombuffer(model.chat_template.encode(), np.uint8)
        file.attrs[SUCCESS_ATTRIBUTE] = True
    return offsets


def _metadata(shape: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of a float32 tensor, as `TorchTensorSerializer` of cerebras.pytorch 2.10 writes them."""
    return {
        "__TORCH__": True,
        "shapes": [list(shape)],
        "dtypes": ["torch.float32"],
        "rtfx_dtypes": [_RTFX_FLOAT32],
        "__TYPE__": "TorchTensorSerializer",
        "__NUMPY__": True,
        "compressed": False,
    }


def _described(key: str, metadata: dict[str, Any]) -> str:
    """The JSON under which a loader looks up one key."""
    spec = [{key: "*"}, _tree_spec({key: None})]
    return json.dumps({_SPEC: spec, _OBJECTS: [key], key + METADATA_SUFFIX: metadata})


def _tree_spec(tree: dict[str, list[str] | None]) -> str:
    """A tree of dictionaries as `torch.utils._pytree.treespec_dumps` writes it (protocol 1)."""
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}

    def of(keys: list[str], children: list[Any]) -> dict[str, Any]:
        return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": children}

    children = [leaf if keys is None else of(keys, [leaf] * len(keys)) for keys in tree.values()]
    return json.dumps([1, of(list(tree), children)])


def _fill(path: Path, model: StoredModel, offsets: dict[str, int]) -> None:
    """Write every array's bytes to its place and flush. Raises OSError, a full disk before the first byte."""
    with open(path, "r+b", buffering=0) as file:
        sizes = {key: 4 * math.prod(shape) for _, key, _, shape in _parts(model.config)}
        end = max(offsets[key] + sizes[key] for key in offsets)
        os.posix_fallocate(file.fileno(), 0, max(end, os.fstat(file.fileno()).st_size))
        name, array = "", np.empty(0, np.float32)
        for current, key, first, shape in _parts(model.config):
            if current != name:
                name, array = current, model.arrays[current]
            _write(file.fileno(), offsets[key], array[first : first + shape[0]])
        os.fsync(file.fileno())


def _write(handle: int, offset: int, array: NDArray[np.float32]) -> None:
    """Rows in pieces of a few megabytes; transposed views are copied piece by piece."""
    rows_per_piece = max(1, CHUNK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), rows_per_piece):
        piece = np.ascontiguousarray(array[start : start + rows_per_piece], dtype="<f4")
        data = piece.reshape(-1).view(np.uint8).data
        while data.nbytes:
            n_written = os.pwrite(handle, data, offset)
            offset += n_written
            data = data[n_written:]
