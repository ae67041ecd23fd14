"""The weights of a model folder: `model.safetensors`, or an index and the shards it names, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from wafergpt.checkpoints.tensor_file import MAX_HEADER_BYTES, Array
from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.checkpoints.untrusted.tensors import MAX_TENSORS, MappedTensors, map_tensors
from wafergpt.errors import CheckpointError, shown

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARDS = 256  # each holds two file handles; 1,024 are a usual limit
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\.safetensors")
# What Transformers and huggingface_hub call a shard; such a file beside the index must be in it.
_NUMBERED = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors", re.IGNORECASE)


class AllTensors:
    """The tensors of all weight files of a folder, under one set of names."""

    def __init__(self, files: dict[str, MappedTensors]) -> None:
        """`files` maps a file's name to its tensors; no tensor may be in two of them."""
        self._home = {name: mapped for mapped in files.values() for name in mapped.entries}
        self.files = tuple(files)
        self.main = SINGLE_NAME if self.files == (SINGLE_NAME,) else INDEX_NAME  # the one that names them all

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in the order of the files."""
        return tuple(self._home)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __len__(self) -> int:
        return len(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape. Raises KeyError."""
        return self._home[name].entries[name].shape

    def dtype_name(self, name: str) -> str:
        """The tensor's dtype as safetensors spells it ("F32", "BF16", ...). Raises KeyError."""
        return self._home[name].entries[name].dtype_name

    def array(self, name: str) -> Array:
        """The tensor's values; see `MappedTensors.array`. Raises KeyError, CheckpointError."""
        return self._home[name].array(name)

    def label(self, name: str) -> str:
        """The file that holds the tensor, for messages. Raises KeyError."""
        return self._home[name].label

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors as stored."""
        return sum(entry.end - entry.begin for name, m in self._home.items() for entry in [m.entries[name]])

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """Raise CheckpointError if one of the named tensors (None: all) holds NaN or infinity."""
        for name in self._home if names is None else names:
            self._home[name].check_finite([name])


def open_tensors(folder: UntrustedFolder) -> AllTensors:
    """Check and map the folder's safetensors weights, one file or the shards of an index.

    Raises CheckpointError naming the file and the rule: no weights, both kinds at once, and what
    `map_tensors` and the index's rules refuse; StorageError when the system cannot map them.
    """
    single, index = folder.has(SINGLE_NAME), folder.has(INDEX_NAME)
    if single and index:
        raise CheckpointError(f"{folder.path}: holds {SINGLE_NAME} and {INDEX_NAME}; which one is meant?")
    if index:
        return _open_shards(folder)
    if not single:
        raise CheckpointError(f"{folder.path}: has neither {SINGLE_NAME} nor {INDEX_NAME}")
    return AllTensors({SINGLE_NAME: map_tensors(folder, SINGLE_NAME)})


def _open_shards(folder: UntrustedFolder) -> AllTensors:
    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(f"{folder.path}/{INDEX_NAME}: {reason}")

    index = folder.read_json(INDEX_NAME, max_bytes=MAX_HEADER_BYTES)
    weight_map = _weight_map(index, refuse)
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        refuse(f"names {len(shards)} shards, over the limit of {MAX_SHARDS}")
    for name in folder.names():
        if _NUMBERED.fullmatch(name) and name not in shards:
            refuse(f"does not name the shard {shown(name)} that lies beside it")
    files: dict[str, MappedTensors] = {}
    homes: dict[str, str] = {}
    for shard in shards:
        if not folder.has(shard):
            refuse(f"names '{shard}', which is missing")
        files[shard] = map_tensors(folder, shard)
        for name in files[shard].entries:
            if name in homes:
                refuse(f"tensor '{name}' is in '{homes[name]}' and in '{shard}'")
            homes[name] = shard
    for name, shard in weight_map.items():
        if homes.get(name) != shard:
            refuse(f"says that {shown(name)} is in '{shard}', where it is not")
    unnamed = sorted(set(homes) - set(weight_map))
    if unnamed:
        refuse(f"does not name tensor '{unnamed[0]}' of '{homes[unnamed[0]]}'")
    tensors = AllTensors(files)
    total = index.get("metadata", {}).get("total_size")
    if total is not None and total != tensors.size_bytes:
        refuse(f"says that the tensors have {shown(total)} bytes; they have {tensors.size_bytes}")
    return tensors


def _weight_map(index: dict[str, Any], refuse: Callable[[str], NoReturn]) -> dict[str, str]:
    unknown = set(index) - {"metadata", "weight_map"}
    if unknown:
        refuse(f"has the unknown key {shown(sorted(unknown)[0])}")
    metadata, weight_map = index.get("metadata", {}), index.get("weight_map")
    if not isinstance(metadata, dict):
        refuse("metadata is not an object")
    if type(metadata.get("total_size", 0)) is not int:
        refuse(f"total_size is {shown(metadata['total_size'])}, not a whole number")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse("weight_map is not an object of names and files")
    if len(weight_map) > MAX_TENSORS:
        refuse(f"names {len(weight_map)} tensors, over the limit of {MAX_TENSORS}")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            refuse(f"{shown(shard)} is not the name of a shard in this folder (NAME.safetensors)")
    return weight_map
