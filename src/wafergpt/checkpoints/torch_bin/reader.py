"""Where each tensor lies in a file that `torch.save` wrote: its dtype, shape, strides and byte offset.

Two layouts exist. Since torch 1.6: an uncompressed zip archive (`<root>/data.pkl`, `<root>/data/<key>`).
Before: five pickles (magic number, version, machine, the objects, the storages' keys), then each storage
as a count and its numbers. Both as in torch's serialization.py (`_save`, `_legacy_save`). Nothing here
reads a tensor's numbers; every length is compared with the file before anything is made of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from wafergpt.checkpoints.torch_bin.archive import LOCAL_MAGIC, Record, read_directory
from wafergpt.checkpoints.torch_bin.pickle_subset import Builder, Name, follow
from wafergpt.errors import CheckpointError, shown

MAX_TENSORS = 20_000  # a 13B GPT-2 with its old buffers has about 560
MAX_DIMENSIONS = 32
MAX_COUNT = 2**48  # numbers in a storage or steps of a view; beyond any file

# torch's storage classes -> safetensors' dtype and its bytes. Complex and quantised ones hold no GPT-2.
STORAGES = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
# torch/serialization.py: MAGIC_NUMBER and PROTOCOL_VERSION of the layout before 1.6.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_RECORD = re.compile(
    r"(?P<root>[^/]{1,256})/(?:data/(?P<key>[0-9A-Za-z_]{1,64})"
    r"|data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_FOREIGN = (  # what else is found under the name pytorch_model.bin
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the real file with 'git lfs pull'"),
    (b"\x1f\x8b", "it is a gzip archive"),
    (b"7z\xbc\xaf", "it is a 7z archive"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x89HDF", "it is an HDF5 file"),
    (b"\x93NUMPY", "it is a NumPy array"),
    (b"<", "it is a web page"),
)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Numbers of one dtype in the file; `key` names them there, `first` is where among them this begins."""

    key: str
    dtype: str
    item_bytes: int
    count: int
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A dense view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes written out."""
        return math.prod(self.shape) * self.storage.item_bytes


@dataclass(frozen=True, kw_only=True)
class TensorTable:
    """All tensors of a file by name; `records` says where each storage lies."""

    tensors: Mapping[str, Tensor]
    records: Mapping[str, Record]

    def begin(self, tensor: Tensor) -> int:
        """The byte of the file at which the tensor's first number lies."""
        storage = tensor.storage
        return self.records[storage.key].begin + (storage.first + tensor.offset) * storage.item_bytes

    @property
    def size_bytes(self) -> int:
        """What all tensors take when each is written out."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def read_table(data: memoryview) -> TensorTable:
    """The tensors of the whole file `data`.

    Raises CheckpointError with the rule (without the file's name) for anything but one state dict: a flat
    dict of names and dense tensors.
    """
    if bytes(data[:4]) == LOCAL_MAGIC:
        table = _read_zip(data)
    elif bytes(data[:1]) == b"\x80":
        table = _read_legacy(data)
    else:
        start = bytes(data[:32])
        known = [what for magic, what in _FOREIGN if start.startswith(magic)]
        if start[8:9] == b"{":
            known = ["it looks like safetensors: name it model.safetensors"]
        refuse(f"is not a file of torch.save ({known[0] if known else 'neither a zip archive nor a pickle'})")
    # Views of one storage are written out one by one: twice the file covers a head tied to the embedding.
    if table.size_bytes > 2 * len(data):
        refuse(f"its tensors show {table.size_bytes} bytes of a file of {len(data)}")
    return table


def refuse(reason: str) -> NoReturn:
    """Raise CheckpointError about the file."""
    raise CheckpointError(reason)


def _read_zip(data: memoryview) -> TensorTable:
    directory = read_directory(data)
    roots, storages = set(), {}
    for name, record in directory.items():
        match = _RECORD.fullmatch(name)
        if match is None:
            program = "code/" in name or name.endswith("constants.pkl")
            refuse(f"holds {shown(name)}: {'a TorchScript program' if program else 'not a file of weights'}")
        roots.add(match["root"])
        if match["key"] is not None:
            storages[match["key"]] = record
    if len(roots) != 1 or f"{min(roots)}/data.pkl" not in directory:
        refuse("has no data.pkl, or several")
    root = roots.pop()
    order = directory.get(f"{root}/byteorder")
    if order is not None and bytes(data[order.begin : order.end][:8]) != b"little":
        refuse("was written by a big-endian machine")
    table = directory[f"{root}/data.pkl"]
    table.check_crc(data, "data.pkl")
    objects = _Objects(id_length=5)
    value, n_bytes = follow(data[table.begin : table.end], objects.names, objects.persistent)
    if n_bytes != table.size_bytes:
        refuse("has bytes behind its pickle")
    for key, storage in objects.storages.items():
        if key not in storages:
            refuse(f"lacks data/{key}")
        _check_length(storage, storages[key].size_bytes)
    unused = sorted(set(storages) - set(objects.storages))
    if unused:
        refuse(f"holds data/{unused[0]}, which no tensor uses")
    return TensorTable(tensors=_tensors(value), records=storages)


def _read_legacy(data: memoryview) -> TensorTable:
    position = 0

    def following(names: Mapping[str, Builder | None], persistent: Builder) -> Any:
        nonlocal position
        value, n_bytes = follow(data[position:], names, persistent)
        position += n_bytes
        return value

    objects = _Objects(id_length=6)
    if following({}, _no_storage) != _LEGACY_MAGIC:
        refuse("is a pickle, but not one of torch.save")
    if following({}, _no_storage) != _LEGACY_VERSION:
        refuse("is of another version than 1001, the last before torch 1.6")
    machine = following({}, _no_storage)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        refuse("was written by a big-endian machine")
    value = following(objects.names, objects.persistent)
    keys = following({}, _no_storage)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        refuse("has no list of its storages")
    if len(set(keys)) != len(keys) or set(keys) != set(objects.storages):
        refuse("lists other storages than its tensors use")
    records = {}
    for key in keys:
        storage = objects.storages[key]
        begin = position + 8
        if int.from_bytes(data[position:begin], "little") != storage.count or begin > len(data):
            refuse(f"storage {shown(key)} has another length than its tensors say")
        position = begin + storage.count * storage.item_bytes
        if position > len(data):
            refuse(f"ends within storage {shown(key)}: it is cut off")
        records[key] = Record(begin=begin, end=position, crc32=None)
    if position != len(data):
        refuse(f"has {len(data) - position} bytes behind its storages")
    return TensorTable(tensors=_tensors(value), records=records)


def _no_storage(key: tuple[Any, ...]) -> object:
    refuse("refers to a storage before its objects")


def _check_length(storage: Storage, n_bytes: int) -> None:
    if storage.count * storage.item_bytes != n_bytes:
        refuse(
            f"data/{storage.key} has {n_bytes} bytes, not those of {storage.count} numbers of {storage.dtype}"
        )


def _tensors(value: object) -> dict[str, Tensor]:
    if type(value) is not dict:
        refuse(f"holds a {type(value).__name__}, not a dict of tensors")
    if not value:
        refuse("holds no tensors")
    if len(value) > MAX_TENSORS:
        refuse(f"has {len(value)} tensors, over the limit of {MAX_TENSORS}")
    for name, tensor in value.items():
        if not _NAME.fullmatch(name):
            refuse(f"{shown(name)} is not the name of a tensor (letters, digits, '_', '.', '-')")
        if type(tensor) is not Tensor:
            kind = type(tensor).__name__
            hint = "; save the model's state dict alone" if kind == "dict" else ""
            refuse(f"holds under {shown(name)} not a tensor but a value of type {kind}{hint}")
    return value


@dataclass(kw_only=True)
class _Objects:
    """What the pickle's names make: storages and tensors, described rather than made."""

    id_length: int  # of a persistent id: 5 in archives, 6 before
    storages: dict[str, Storage] = field(default_factory=dict)  # by key, as wide as the file has them
    names: dict[str, Builder | None] = field(init=False)

    def __post_init__(self) -> None:
        # torch.cuda's storages are those of files written before 1.0; where they lay does not matter here.
        self.names = {f"{module}.{name}": None for module in ("torch", "torch.cuda") for name in STORAGES}
        self.names |= {
            "collections.OrderedDict": _empty_dict,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor_v2,
            "torch._utils._rebuild_parameter": _parameter,
        }

    def persistent(self, key: tuple[Any, ...]) -> Storage:
        """('storage', class, key, device, count), in the old layout with a view or None behind."""
        if len(key) != self.id_length or key[0] != "storage" or type(key[1]) is not Name:
            refuse("refers to something that is not a storage")
        dtype = STORAGES.get(key[1].text.rpartition(".")[2])
        if dtype is None or type(key[2]) is not str or type(key[3]) is not str:
            refuse("refers to something that is not a storage")
        count = _whole(key[4], "length of a storage")
        storage = Storage(key=key[2], dtype=dtype[0], item_bytes=dtype[1], count=count)
        if self.storages.setdefault(storage.key, storage) != storage:
            refuse(f"describes storage {shown(storage.key)} in two ways")
        view = key[5] if len(key) == 6 else None
        return storage if view is None else _narrowed(storage, view)


def _narrowed(storage: Storage, view: object) -> Storage:
    """The part of a storage that an old file's (key, offset, length) names."""
    if type(view) is not tuple or len(view) != 3:
        refuse("has a view of a storage that is not three values")
    first, count = _whole(view[1], "offset of a storage"), _whole(view[2], "length of a storage")
    if first + count > storage.count:
        refuse(f"has a view beyond storage {shown(storage.key)}")
    return dataclasses.replace(storage, first=first, count=count)


def _empty_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        refuse("fills an OrderedDict in an unknown way")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """(storage, offset, shape, strides)."""
    if len(arguments) != 4 or type(arguments[0]) is not Storage:
        refuse("makes a tensor of something that is not a storage")
    storage, _, shape, strides = arguments
    offset = _whole(arguments[1], "offset of a tensor")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        refuse("makes a tensor with other strides than dimensions")
    if len(shape) > MAX_DIMENSIONS:
        refuse(f"makes a tensor of {len(shape)} dimensions")
    sizes = [
        (_whole(n, "size of a tensor"), _whole(s, "stride")) for n, s in zip(shape, strides, strict=True)
    ]
    # Exact integers: no product of hostile sizes can wrap round.
    last = offset + sum((n - 1) * s for n, s in sizes)
    if (0 not in shape and last >= storage.count) or offset > storage.count:
        refuse(f"makes a tensor beyond the {storage.count} numbers of storage {shown(storage.key)}")
    return Tensor(storage=storage, offset=offset, shape=shape, strides=strides)


def _tensor_v2(arguments: tuple[Any, ...]) -> Tensor:
    """As `_tensor`, then requires_grad, and hooks and metadata, which must be empty."""
    tensor = _tensor(arguments[:4])
    if len(arguments) not in (6, 7) or any(extra not in (None, {}) for extra in arguments[5:]):
        refuse("makes a tensor with hooks or marks, which a file of weights does not need")
    _check_gradient(tensor, arguments[4])
    return tensor


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """(tensor, requires_grad, hooks)."""
    if len(arguments) != 3 or type(arguments[0]) is not Tensor or arguments[2] not in (None, {}):
        refuse("makes a parameter of something that is not a tensor")
    tensor: Tensor = arguments[0]
    _check_gradient(tensor, arguments[1])
    return tensor


def _check_gradient(tensor: Tensor, requires_grad: object) -> None:
    """Whether it was being trained does not matter here; torch has it only where a gradient can be."""
    if type(requires_grad) is not bool or (requires_grad and "F" not in tensor.storage.dtype):
        refuse("makes a tensor of whole numbers that wants a gradient")


def _whole(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        refuse(f"gives {shown(value)} as the {what}")
    return value
