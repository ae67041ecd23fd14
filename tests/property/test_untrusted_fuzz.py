"""Damaged model files, drawn at random: refused by name, or read as the reference libraries read them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import safetensors

from checkpoint_lab.process import memory_folder
from hostile_lab.folders import Arrays, put, tokenizer
from hostile_lab.folders import safetensors as packed_tensors
from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.checkpoints.untrusted.json_text import parse_json
from wafergpt.checkpoints.untrusted.tensors import map_tensors
from wafergpt.errors import CheckpointError, DataError
from wafergpt.tokenizer.tokenizer_file import tokenizer_from_form

TENSORS: Arrays = {
    "wte": ("F32", [3, 4], bytes(range(48))),
    "b": ("BF16", [5], bytes(range(10))),
    "h": ("F16", [2, 1], b"\0\x3c\0\x40"),
    "i": ("I64", [1], bytes(8)),
    "e": ("F32", [0, 7], b""),
}


def mutated(data: bytes, rng: random.Random, end: int) -> bytes:
    """Up to three edits in the first `end` bytes: digits, structure, copies of a stretch."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        position = rng.randrange(min(end, len(out)))
        edit = rng.randrange(5)
        if edit == 0:
            out[position] = rng.randrange(256)
        elif edit == 1:
            digits = [i for i, byte in enumerate(out[:end]) if 48 <= byte <= 57]
            out[rng.choice(digits)] = 48 + rng.randrange(10)
        elif edit == 2:
            out.insert(position, rng.choice(b'0123456789{}[],:"\\ '))
        elif edit == 3:
            del out[position]
        else:
            out[position:position] = out[position : position + rng.randint(1, 60)]
    return bytes(out)


def fuzz_tensors(n_files: int, seed: int, folder_path: Path) -> int:
    """The number accepted; asserts that the library accepts those too and holds the same bytes."""
    rng, n_accepted = random.Random(seed), 0
    data = packed_tensors(TENSORS)
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(n_files):
        mutant = mutated(data, rng, end)
        put(folder_path, "model.safetensors", mutant)
        try:
            mapped = map_tensors(UntrustedFolder(folder_path), "model.safetensors")
        except CheckpointError as error:
            assert str(error).isprintable(), repr(str(error))
            continue
        n_accepted += 1
        theirs = dict(safetensors.deserialize(mutant))
        assert theirs.keys() == mapped.entries.keys()
        for name, entry in mapped.entries.items():
            assert theirs[name]["dtype"] == entry.dtype_name
            assert tuple(theirs[name]["shape"]) == entry.shape
            assert bytes(theirs[name]["data"]) == mapped._view(entry).tobytes()
    return n_accepted


def fuzz_json(n_texts: int, seed: int) -> int:
    """The number accepted; asserts that the standard library reads those, and reads the same."""
    rng, n_accepted = random.Random(seed), 0
    text = json.dumps({"a": [1, -2.5e3, 'x"\\\u00e9[{,:', None], "b": {"c": {}, "": [True, []]}}).encode()
    for _ in range(n_texts):
        mutant = mutated(text, rng, len(text))
        try:
            value = parse_json(mutant)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        n_accepted += 1
        assert value == json.loads(mutant)
    return n_accepted


def fuzz_tokenizers(n_files: int, seed: int) -> int:
    """The number accepted; what is refused is refused by rule."""
    rng, n_accepted = random.Random(seed), 0
    text = json.dumps(tokenizer()).encode()
    for _ in range(n_files):
        try:
            form = parse_json(mutated(text, rng, len(text)))
            tokenizer_from_form(form if isinstance(form, dict) else {})
        except DataError as error:
            assert str(error).isprintable(), repr(str(error))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            n_accepted += 1
    return n_accepted


def test_what_is_accepted_is_what_the_libraries_read() -> None:
    with memory_folder() as folder:
        assert 0 < fuzz_tensors(2_000, 1, folder) < 2_000
    assert 0 < fuzz_json(5_000, 2) < 5_000
    assert 0 < fuzz_tokenizers(300, 3) < 300


@pytest.mark.long
def test_in_depth() -> None:
    with memory_folder() as folder:
        assert fuzz_tensors(200_000, 4, folder) > 0
    assert fuzz_json(500_000, 5) > 0
    assert fuzz_tokenizers(20_000, 6) > 0


def test_a_reader_without_one_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: sizes may be negative, and two of them multiply to the right length."""
    data = packed_tensors({"a": ("U8", [-1, -2], b"xx")})
    with memory_folder() as folder:
        put(folder, "model.safetensors", data)
        with pytest.raises(CheckpointError, match="bad shape"):
            map_tensors(UntrustedFolder(folder), "model.safetensors")
        monkeypatch.setattr("wafergpt.checkpoints.tensor_file._sizes", lambda values: True)
        map_tensors(UntrustedFolder(folder), "model.safetensors")
    with pytest.raises(safetensors.SafetensorError):  # what `fuzz_tensors` would stop at
        safetensors.deserialize(data)
