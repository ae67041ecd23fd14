"""A small valid model folder, made without the code under test, and ways to spoil it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCAB_SIZE, D, F, MAX_SEQ_LEN = 262, 8, 32, 16
CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "n_embd": D,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": MAX_SEQ_LEN,
    "n_ctx": MAX_SEQ_LEN,
    "vocab_size": VOCAB_SIZE,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)

Header = dict[str, Any]
Arrays = dict[str, tuple[str, list[int], bytes]]  # name -> dtype, shape, data


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile (or valid) folder. `build(folder, marker)` makes it; only code that runs makes `marker`."""

    name: str
    build: Callable[[Path, Path], object]
    rule: str | None  # words of the message; None: it must load; "*": loading and refusing are both right
    file: str = ""  # named in the message
    given: str = ""  # what is handed to the loader, below the folder
    tamper: str = ""  # done to the weights when they are mapped: "append" or "truncate"


# -- a valid folder


def shapes() -> dict[str, list[int]]:
    block = {
        **{f"ln_{n}.{kind}": [D] for n in (1, 2) for kind in ("weight", "bias")},
        "attn.c_attn.weight": [D, 3 * D],
        "attn.c_attn.bias": [3 * D],
        "attn.c_proj.weight": [D, D],
        "attn.c_proj.bias": [D],
        "mlp.c_fc.weight": [D, F],
        "mlp.c_fc.bias": [F],
        "mlp.c_proj.weight": [F, D],
        "mlp.c_proj.bias": [D],
    }
    return {
        "transformer.wte.weight": [VOCAB_SIZE, D],
        "transformer.wpe.weight": [MAX_SEQ_LEN, D],
        **{f"transformer.h.0.{name}": shape for name, shape in block.items()},
        "transformer.ln_f.weight": [D],
        "transformer.ln_f.bias": [D],
    }


def arrays(dtype: str = "F32") -> Arrays:
    random = np.random.default_rng(0)
    found: Arrays = {}
    for name, shape in shapes().items():
        values = random.standard_normal(shape).astype("<f4")
        bits = {"F32": values, "F16": values.astype("<f2"), "F64": values.astype("<f8")}.get(dtype)
        if dtype == "BF16":
            bits = (values.view("<u4") >> 16).astype("<u2")
        assert bits is not None
        found[name] = (dtype, shape, bits.tobytes())
    return found


def header_of(tensors: Arrays) -> tuple[Header, bytes]:
    header: Header = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return header, data


def packed(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def safetensors(tensors: Arrays | None = None) -> bytes:
    header, data = header_of(arrays() if tensors is None else tensors)
    return packed(json.dumps(header).encode(), data)


def tokenizer() -> dict[str, Any]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    entries = [*letters, "<|endoftext|>", "th", "the", "in", "\u0120in", "er"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256, "content": "<|endoftext|>", "special": True, "lstrip": False}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": {entry: n for n, entry in enumerate(entries)},
            "merges": ["t h", "th e", "i n", "\u0120 in", "e r"],
        },
    }


def put(folder: Path, name: str, content: bytes | str | Mapping[str, Any] | list[Any]) -> Path:
    """Write text, bytes or JSON (with NaN where it is asked for)."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    elif not isinstance(content, bytes):
        content = json.dumps(content).encode()
    path = folder / name
    path.write_bytes(content)
    return path


def good(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """The whole valid folder, less the files in `without`."""
    files = {"config.json": CONFIG, WEIGHTS: safetensors(), "tokenizer.json": tokenizer()}
    for name, content in files.items():
        if name not in without:
            put(folder, name, content)
    return folder


def sharded(folder: Path) -> dict[str, Any]:
    """A valid folder of two shards; returns its index, which is written too."""
    good(folder, without=(WEIGHTS,))
    items = list(arrays().items())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = dict(zip(names, (dict(items[:5]), dict(items[5:])), strict=True))
    for name, part in parts.items():
        put(folder, name, safetensors(part))
    total = sum(len(content) for _, _, content in dict(items).values())
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    put(folder, INDEX, index)
    return index


# -- payloads


class _Payload:
    """Unpickling it creates the marker file, and does nothing else."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def pickled(marker: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"transformer.wte.weight": _Payload(marker)}, protocol=protocol)


def script(marker: Path) -> str:
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
