"""Files of other writers are read; files that lie are refused with the rule, whatever they claim."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wafergpt.checkpoints.gguf import header as header_module
from wafergpt.checkpoints.gguf.layout import GGUFKind, Value, ValueType, encode_header
from wafergpt.checkpoints.gguf.names import tensor_names
from wafergpt.checkpoints.gguf.reader import read_gguf
from wafergpt.checkpoints.gguf.writer import metadata, tensor_plan, write_gguf
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.errors import CheckpointError, WaferGPTError
from wafergpt.model.config import GPTConfig

gguf = pytest.importorskip("gguf")

TINY = GPTConfig(d_model=32, n_layers=1, n_heads=2, vocab_size=40, max_seq_len=8)


def model() -> StoredModel:
    rng = np.random.default_rng(1)
    shapes = TINY.parameter_shapes()
    arrays = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return StoredModel(config=TINY, arrays=arrays)


def library_file(
    path: Path,
    *,
    head: np.ndarray[Any, Any] | None = None,
    quantised: Any = None,
    extra: Callable[[Any], None] = lambda writer: None,
) -> None:
    """What the library's own writer makes of the model, keys as llama.cpp's converter sets them."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(TINY.n_layers)
    writer.add_context_length(TINY.max_seq_len)
    writer.add_embedding_length(TINY.d_model)
    writer.add_feed_forward_length(TINY.ffn_width)
    writer.add_head_count(TINY.n_heads)
    writer.add_layer_norm_eps(TINY.layer_norm_eps)
    writer.add_name("somebody's model")
    extra(writer)
    for name, ours in tensor_names(TINY).items():
        array = model().arrays[ours]
        if quantised is not None and array.ndim == 2 and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, array)
    if head is not None:
        writer.add_tensor("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    library_file(tmp_path / "m.gguf")
    read_back = read_gguf(tmp_path / "m.gguf")
    assert (read_back.config.layer_norm_eps, read_back.provenance) == (1e-5, {"name": "somebody's model"})
    for name, array in model().arrays.items():
        np.testing.assert_array_equal(read_back.arrays[name], array)
        assert read_back.arrays[name].flags.writeable
    assert "no tokenizer" in read_back.notes[0]


@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_other_types_are_read_dequantised(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    library_file(tmp_path / "m.gguf", quantised=kind)
    array = model().arrays["h.0.mlp.c_fc.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
    np.testing.assert_array_equal(read_gguf(tmp_path / "m.gguf").arrays["h.0.mlp.c_fc.weight"], expected)


def test_a_stored_head_must_be_the_embedding(tmp_path: Path) -> None:
    embedding = model().arrays["wte.weight"]
    library_file(tmp_path / "tied.gguf", head=embedding)
    assert any("dropped 'output.weight'" in note for note in read_gguf(tmp_path / "tied.gguf").notes)
    library_file(tmp_path / "untied.gguf", head=embedding + 1)
    with pytest.raises(CheckpointError, match="a head of its own is not supported"):
        read_gguf(tmp_path / "untied.gguf")


def test_arrays_are_private_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(model(), path)
    before = path.read_bytes()
    array = read_gguf(path).arrays["wte.weight"]
    assert not array.flags.owndata
    array += 1
    assert path.read_bytes() == before


def crafted(
    *, keys: dict[str, Value | None] | None = None, cut: int = 0, tail: bytes = b"", drop: str = ""
) -> bytes:
    """Our file with keys changed (None: left out), a tensor left out, cut short or with bytes after it."""
    table = {**metadata(model(), GGUFKind.F32), **(keys or {})}
    plan = [info for info in tensor_plan(TINY, GGUFKind.F32) if info.name != drop]
    body = encode_header({key: value for key, value in table.items() if value is not None}, plan)
    for info in plan:
        array = model().arrays[tensor_names(TINY)[info.name]]
        body += array.tobytes() + bytes(-info.n_bytes % 32)
    return body[: len(body) - cut] + tail


def integer(value: int, kind: ValueType = ValueType.UINT32) -> Value:
    return Value(type=kind, value=value)


def text(value: Any) -> Value:
    return Value(type=ValueType.STRING, value=value)


def start(n_tensors: int, n_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


KEY = struct.pack("<Q", 1) + b"a"
ARRAY = int(ValueType.ARRAY)
HOSTILE: list[tuple[bytes, str]] = [
    (b"", "too few"),
    (b"GGUF" + bytes(19), "too few"),
    (b"GGML" + bytes(60), "does not begin with 'GGUF'"),
    (start(0, 0, version=1), "version 1 is not 2 or 3"),
    (start(0, 0, version=3 << 24), "big-endian"),
    (start(2**63, 0), "at most 100000"),
    (start(0, 2**63), "at most 100000 and 10000"),
    (start(0, 1), "past the end of the file"),
    (start(0, 1, struct.pack("<Q", 2**63)), "at most 256 are allowed"),
    (start(0, 1, KEY + struct.pack("<I", 99)), "'a' has the unknown type 99"),
    (start(0, 1, KEY + struct.pack("<IQ", 8, 2**62)), "at most 67108864 are allowed"),
    (start(0, 1, KEY + struct.pack("<IQ", 8, 2**25)), "past the end of the file"),
    (start(0, 1, KEY + struct.pack("<IIQ", ARRAY, 9, 1)), "array of arrays"),
    (start(0, 1, KEY + struct.pack("<IIQ", ARRAY, 8, 2**40)), "at most 2097152 are read"),
    (start(0, 1, KEY + struct.pack("<IIQ", ARRAY, 4, 2**20)), "past the end of the file"),
    (start(0, 1, KEY + struct.pack("<IB", 7, 2)), "a bool of value 2"),
    (start(0, 1, KEY + struct.pack("<IQ", 8, 1) + b"\xff"), "not UTF-8"),
    (start(0, 2, (KEY + struct.pack("<II", 4, 1)) * 2), "'a' appears twice"),
    (start(0, 1, struct.pack("<Q", 2) + b"a\n" + struct.pack("<II", 4, 1)), "names are printable ASCII"),
    (start(1, 0, KEY + struct.pack("<I", 9)), "9 dimensions"),
    (start(1, 0, KEY + struct.pack("<IQIQ", 1, 0, 0, 0)), "impossible shape"),
    (start(1, 0, KEY + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)), "impossible shape"),
    (start(1, 0, KEY + struct.pack("<IQIQ", 1, 2**40, 0, 0)), "the data end at"),
    (start(1, 0, KEY + struct.pack("<IQIQ", 1, 33, 8, 0)), "not whole blocks of 32"),
    (start(1, 0, KEY + struct.pack("<IQIQ", 1, 4, 77, 0)), "ggml type 77"),
    (start(1, 0, KEY + struct.pack("<IQIQ", 1, 4, 0, 2**63)), "a gap or an overlap"),
    (start(2, 0, (KEY + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2), "'a' appears twice"),
    (crafted(cut=1), "the data end at"),
    (crafted(tail=bytes(64)), "follow the last tensor"),
    (crafted(keys={"general.alignment": integer(3)}), "not a power of two"),
    (crafted(keys={"general.alignment": integer(2**31)}), "not a power of two"),
    (crafted(keys={"general.alignment": text("8")}), "not a uint32"),
    (crafted(keys={"general.architecture": text("llama")}), "only 'gpt2' is read"),
    (crafted(keys={"general.architecture": None}), "only 'gpt2' is read"),
    (crafted(keys={"gpt2.block_count": None}), "'gpt2.block_count' is missing"),
    (crafted(keys={"gpt2.block_count": text("1")}), "not a whole number"),
    (crafted(keys={"gpt2.block_count": integer(2**32 - 1)}), "but it has"),
    (crafted(keys={"gpt2.embedding_length": integer(2**40, ValueType.UINT64)}), "do not fit"),
    (crafted(keys={"gpt2.attention.head_count": integer(0)}), "do not fit"),
    (crafted(keys={"gpt2.attention.head_count": integer(5)}), "do not fit"),
    (crafted(keys={"gpt2.attention.head_count_kv": integer(1)}), "fewer key-value heads"),
    (crafted(keys={"gpt2.context_length": integer(9)}), "'position_embd.weight' has shape"),
    (crafted(keys={"gpt2.context_length": integer(-1, ValueType.INT32)}), "max_seq_len"),
    (crafted(keys={"gpt2.vocab_size": integer(41)}), "the embedding has 40 rows"),
    (crafted(keys={"gpt2.attention.clamp_kqv": integer(1)}), "may change the computation"),
    (crafted(keys={"gpt2.attention.layer_norm_epsilon": integer(1)}), "missing or not a number"),
    (crafted(keys={"split.count": integer(2)}), "one part of a split model"),
    (crafted(drop="blk.0.ffn_up.bias"), "gap or an overlap"),
    (crafted(drop="output_norm.bias"), "'output_norm.bias' is missing"),
    (
        crafted(
            keys={
                "wafergpt.token_place_holders": None,
                "tokenizer.ggml.tokens": text(["a"] * 40),
                "tokenizer.ggml.token_type": Value(type=ValueType.INT32, value=[1] * 40),
            }
        ),
        "has the ids 0 and 1",
    ),
    (
        crafted(keys={"wafergpt.token_place_holders": None, "tokenizer.ggml.tokens": text(["a"])}),
        "1 tokens and 40 token types for 40 embedding rows",
    ),
    (
        crafted(keys={"wafergpt.token_place_holders": None, "tokenizer.ggml.merges": text("a b")}),
        "'tokenizer.ggml.merges' is missing or not a list",
    ),
    (crafted(keys={"wafergpt.token_place_holders": None}), "is of type 4"),
]


def test_the_crafted_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(crafted())
    assert read_gguf(tmp_path / "m.gguf").config.n_layers == 1


@pytest.mark.parametrize(("data", "reason"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_file_that_lies_is_refused_with_the_rule(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and reason in message and "\n" not in message


def test_damaged_files_never_do_anything_but_be_refused(tmp_path: Path) -> None:
    """Bytes of the header changed at random: read or refused by name, nothing else."""
    good, rng, n_refused = crafted(), random.Random(0), 0
    n_header = len(good) - sum(info.n_bytes for info in tensor_plan(TINY, GGUFKind.F32))
    path = tmp_path / "m.gguf"
    for _ in range(400):
        data = bytearray(good[: rng.choice([len(good), rng.randrange(len(good))])])
        for _ in range(rng.choice([0, 1, 3])):
            data[rng.randrange(min(n_header, len(data)))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
        path.write_bytes(data)
        try:
            read = read_gguf(path)
            assert {name: a.shape for name, a in read.arrays.items()} == read.config.parameter_shapes()
        except WaferGPTError:
            n_refused += 1
    assert 200 <= n_refused < 400


def test_the_fuzzing_notices_a_reader_without_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: tensors are no longer held against the end of the file."""
    monkeypatch.setattr(header_module, "_check_tiling", lambda *arguments: None)
    with pytest.raises((AssertionError, ValueError)):
        test_damaged_files_never_do_anything_but_be_refused(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [GGUFKind.F32, GGUFKind.F16])
def test_nan_and_infinity_are_found_when_the_array_is_asked_for(
    value: float, kind: GGUFKind, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(model(), path, kind=kind)
    plan = {info.name: info for info in tensor_plan(TINY, kind)}["blk.0.attn_qkv.weight"]
    data = bytearray(path.read_bytes())
    begin = header_module.parse_header(np.frombuffer(data, np.uint8), "m").data_start + plan.offset
    bad = np.array([value], "<f4" if kind is GGUFKind.F32 else "<f2").tobytes()
    data[begin : begin + len(bad)] = bad
    path.write_bytes(data)
    arrays = read_gguf(path).arrays
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_qkv\.weight' holds nan or infinity"):
        arrays["h.0.attn.c_attn.weight"]


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in ((tmp_path / "fifo", "FIFO"), (tmp_path, "folder"), (tmp_path / "no", "opened")):
        with pytest.raises(CheckpointError, match=reason):
            read_gguf(path)
