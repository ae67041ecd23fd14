"""safetensors files that lie, and indexes of shards that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile_lab.folders import (
    INDEX,
    WEIGHTS,
    Arrays,
    Case,
    D,
    Header,
    arrays,
    good,
    header_of,
    packed,
    put,
    safetensors,
    sharded,
)

WTE = "transformer.wte.weight"
LN = "transformer.ln_f.weight"


def _file(name: str, content: Callable[[], bytes], rule: str | None) -> Case:
    return Case(
        name=f"safetensors: {name}",
        build=lambda folder, marker: put(good(folder), WEIGHTS, content()),
        rule=rule,
        file=WEIGHTS if rule else "",
    )


def _entry(name: str, rule: str, **fields: Any) -> Case:
    """One tensor's entry changed; the data are as they were."""

    def content() -> bytes:
        header, data = header_of(arrays())
        header[LN] = {**header[LN], **fields}
        return packed(json.dumps(header).encode(), data)

    return _file(name, content, rule)


def _edited(
    name: str, edit: Callable[[Header, bytes], tuple[Header, bytes] | None], rule: str | None
) -> Case:
    def content() -> bytes:
        header, data = header_of(arrays())
        header, data = edit(header, data) or (header, data)
        return packed(json.dumps(header).encode(), data)

    return _file(name, content, rule)


def _text(name: str, edit: Callable[[bytes], bytes], rule: str | None) -> Case:
    """The header's bytes changed."""

    def content() -> bytes:
        header, data = header_of(arrays())
        return packed(edit(json.dumps(header).encode()), data)

    return _file(name, content, rule)


def _named(label: str, name: str, rule: str = "is not the name of a tensor") -> Case:
    return _file(f"name {label}", lambda: safetensors({**arrays(), name: ("U8", [0], b"")}), rule)


def _changed(label: str, rule: str | None, **tensors: Any) -> Case:
    def content() -> bytes:
        found: Arrays = {**arrays(), **{n.replace("_DOT_", "."): t for n, t in tensors.items()}}
        return safetensors({name: tensor for name, tensor in found.items() if tensor})

    return _file(label, content, rule)


def _poisoned(dtype: str, bits: bytes) -> Case:
    def content() -> bytes:
        found = arrays(dtype)
        kind, shape, data = found[WTE]
        found[WTE] = kind, shape, data[: -len(bits)] + bits
        return safetensors(found)

    return _file(f"{bits.hex()} in {dtype}", content, "holds NaN or infinity")


def _lengths() -> list[Case]:
    def header(name: str, length: int, rule: str) -> Case:
        return _file(f"header length {name}", lambda: length.to_bytes(8, "little") + safetensors()[8:], rule)

    def sparse(folder: Path, length: int) -> None:
        path = put(good(folder), WEIGHTS, length.to_bytes(8, "little"))
        with path.open("r+b") as file:
            file.truncate(8 + length)

    return [
        header("0", 0, "not valid JSON"),
        header("1", 1, "not valid JSON"),
        header("one too short", len(json.dumps(header_of(arrays())[0])) - 1, "not valid JSON"),
        header("one past the file", len(safetensors()) - 7, "does not fit"),
        header("8 MiB + 1", (8 << 20) + 1, "over the limit"),
        header("2^62", 1 << 62, "over the limit"),
        header("2^63", 1 << 63, "over the limit"),
        header("2^64 - 1", (1 << 64) - 1, "over the limit"),
        *(
            Case(
                name=f"safetensors: a header of {length >> 20} MiB that is there",
                build=lambda folder, marker, length=length: sparse(folder, length),  # type: ignore[misc]
                rule=rule,
                file=WEIGHTS,
            )
            for length, rule in ((100 << 20, "over the limit"), (8 << 20, "not valid JSON"))
        ),
    ]


def _headers() -> list[Case]:
    tiny = '"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    many = "{" + ",".join(tiny % format(n, "x") for n in range(31_000)) + "}"
    double = b'{"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' % WTE.encode()
    return [
        _text("duplicate name", lambda text: double + text[1:], "appears twice"),
        _text("duplicate by escape", lambda t: double.replace(b"wte", b"\\u0077te") + t[1:], "appears twice"),
        _text(
            "duplicate key in an entry", lambda t: t.replace(b'"dtype"', b'"dtype":"F32","dtype"', 1), "twice"
        ),
        _text("10^5 deep", lambda text: b"[" * 100_000, "nested too deeply"),
        _text(
            "deep metadata", lambda t: b'{"__metadata__":' + b"[" * 80 + b"]" * 80 + b"," + t[1:], "nested"
        ),
        _text("8 MB of empty lists", lambda t: b"[" + b"[]," * 2_700_000 + b"0]", "more values"),
        _text("8 MB of empty objects", lambda t: b"[" + b'{"":0},' * 1_100_000 + b"0]", "more values"),
        _file("31,000 tensors", lambda: packed(many.encode(), b""), "limit of 30000"),
        _text(
            "8 MB of one text with an emoji",
            lambda t: b'"' + "🎉".encode() + b"a" * 8_000_000 + b'"',
            "four in memory",
        ),
        _text("a list", lambda text: b"[]", "not a JSON object"),
        _text("a number", lambda text: b"7", "not a JSON object"),
        _text("a byte order mark", lambda text: b"\xef\xbb\xbf" + text, "not valid JSON"),
        _text("leading spaces", lambda text: b"  " + text, "not a JSON object"),
        _text("trailing NULs", lambda text: text + bytes(8), "not valid JSON"),
        _text("not UTF-8", lambda text: text.replace(b"wte", b"\xff\xfe\xfd"), "not valid JSON"),
        _text("a half surrogate as name", lambda text: text.replace(b"wte", b"\\ud800"), "name of a tensor"),
        _text("NaN as offset", lambda text: text.replace(b"[0, ", b"[NaN, ", 1), "NaN"),
        _text("1e999 as offset", lambda text: text.replace(b"[0, ", b"[1e999, ", 1), "too large"),
        _text("offset of 5000 digits", lambda t: t.replace(b"[0, ", b"[" + b"9" * 5000 + b", ", 1), "limit"),
        _text("a comment", lambda text: b"{/* */" + text[1:], "not valid JSON"),
        _text("metadata of numbers", lambda t: b'{"__metadata__":{"a":1},' + t[1:], "__metadata__"),
        _text("metadata a list", lambda t: b'{"__metadata__":[],' + t[1:], "__metadata__"),
        _text("trailing spaces", lambda text: text + b"   ", None),
    ]


def _shift(header: Header, by: int, data: bytes) -> tuple[Header, bytes]:
    for entry in list(header.values())[1:]:
        entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
    return header, data


def _hole(header: Header, data: bytes) -> tuple[Header, bytes]:
    first = header[WTE]["data_offsets"][1]
    return _shift(header, 8, data[:first] + bytes(8) + data[first:])


def _shared(header: Header, data: bytes) -> None:
    names = [name for name in header if header[name]["shape"] == [D]]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def _misaligned(header: Header, data: bytes) -> tuple[Header, bytes]:
    first = {"transformer.h.0.attn.masked_bias": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    for entry in header.values():
        entry["data_offsets"] = [offset + 1 for offset in entry["data_offsets"]]
    return first | header, b"\0" + data


def _layout() -> list[Case]:
    return [
        _edited("a hole", _hole, "a gap or an overlap"),
        _edited("an overlap", lambda h, d: _shift(h, -4, d[:-4]), "a gap or an overlap"),
        _edited("two tensors in one place", _shared, "a gap or an overlap"),
        _edited("a trailing byte", lambda h, d: (h, d + b"x"), "the file"),
        _edited("a MB after the tensors", lambda h, d: (h, d + bytes(1 << 20)), "the file"),
        _edited("a byte missing", lambda h, d: (h, d[:-1]), "the file"),
        _edited("no data", lambda h, d: (h, b""), "the file"),
        _edited("misaligned", _misaligned, None),
        _file("no byte", lambda: b"", "too few"),
        _file("one byte", lambda: b"{", "too few"),
        _file("the length alone", lambda: bytes(8), "not valid JSON"),
        _entry("[0, 2^62]", "does not take", shape=[0, 1 << 62]),
        _entry("2^32 x 2^32", "does not take", shape=[1 << 32, 1 << 32]),
        _entry("2^32 x 2^32 x 0 at the end", "does not take", shape=[1 << 32, 1 << 32, 0]),
        _entry("2^63", "bad shape", shape=[1 << 63]),
        _entry("33 dimensions", "bad shape", shape=[1] * 32 + [D]),
        _entry("10^5 dimensions", "bad shape", shape=[1] * 100_000),
        _entry("a negative side", "bad shape", shape=[-D]),
        _entry("two negative sides", "bad shape", shape=[-1, -D]),
        _entry("a float side", "bad shape", shape=[8.0]),
        _entry("a bool side", "bad shape", shape=[True, D]),
        _entry("a text side", "bad shape", shape=["8"]),
        _entry("a nested shape", "bad shape", shape=[[D]]),
        _entry("a shape that is a number", "bad shape", shape=D),
        _entry("no shape", "bad shape", shape=None),
        _entry("dtype F8_E4M3", "has dtype 'F8_E4M3'", dtype="F8_E4M3"),
        _entry("dtype object", "has dtype 'O'", dtype="O"),
        _entry("dtype null", "has dtype None", dtype=None),
        _entry("dtype of 1 MB", "has dtype", dtype="F" * 1_000_000),
        _entry("dtype of another width", "does not take", dtype="F64"),
        _entry("negative offsets", "bad data_offsets", data_offsets=[-32, 0]),
        _entry("offsets the wrong way", "does not take", data_offsets=[32, 0]),
        _entry("one offset", "bad data_offsets", data_offsets=[0]),
        _entry("three offsets", "bad data_offsets", data_offsets=[0, 16, 32]),
        _entry("float offsets", "bad data_offsets", data_offsets=[0.0, 32.0]),
        _entry("text offsets", "bad data_offsets", data_offsets="0,32"),
        _entry("offsets past the file", "a gap or an overlap", data_offsets=[1 << 40, (1 << 40) + 32]),
        _entry("an extra field", "does not have exactly", extra=1),
        _edited("an entry that is a list", lambda h, d: h.update({LN: []}), "does not have exactly"),
        _edited("an entry that is null", lambda h, d: h.update({LN: None}), "does not have exactly"),
    ]


def _contents() -> list[Case]:
    nan32, inf32 = np.float32(np.nan).tobytes(), np.float32(-np.inf).tobytes()
    wide = np.zeros((D, D), "<i8").tobytes()
    head = np.ones((262, D), "<f4").tobytes()
    return [
        _poisoned("F32", nan32),
        _poisoned("F32", inf32),
        _poisoned("F16", b"\x00\x7c"),
        _poisoned("BF16", b"\xc0\x7f"),
        _poisoned("F64", np.float64(np.nan).tobytes()),
        _named("../x", "../x"),
        _named("with NUL", "transformer.wte\0.weight"),
        _named("with a line break", "x\nwafergpt: all is well"),
        _named("of 1 MB", "x" * 1_000_000),
        _named("empty", ""),
        _named("absolute", "/etc/passwd"),
        _named("with terminal codes", "\x1b[2Jx"),
        _named("dunder", "__class__", "__class__"),
        _named("unknown", "transformer.h.7.ln_1.bias", "transformer.h.7.ln_1.bias"),
        _changed("tensor missing", "is missing", transformer_DOT_ln_f_DOT_bias=None),
        _changed("tensor of another shape", "shape", transformer_DOT_ln_f_DOT_bias=("F32", [4], bytes(16))),
        _changed(
            "matrix the other way round",
            "shape",
            transformer_DOT_h_DOT_0_DOT_attn_DOT_c_attn_DOT_weight=("F32", [24, 8], bytes(768)),
        ),
        _changed(
            "matrix of integers",
            "I64",
            transformer_DOT_h_DOT_0_DOT_attn_DOT_c_proj_DOT_weight=("I64", [D, D], wide),
        ),
        _changed("another head", "differs from", lm_head_DOT_weight=("F32", [262, D], head)),
        _file("no tensors", lambda: packed(b"{}", b""), "is missing"),
    ]


def _index(name: str, rule: str, edit: Callable[[dict[str, Any], Path], object]) -> Case:
    def build(folder: Path, marker: Path) -> None:
        index = sharded(folder)
        content = edit(index, folder)
        put(folder, INDEX, content if isinstance(content, bytes) else index)

    return Case(name=f"index: {name}", build=build, rule=rule, file=INDEX if rule != "which one" else "")


def _indexes() -> list[Case]:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    def place(shard: Any) -> Callable[[dict[str, Any], Path], object]:
        return lambda index, folder: index["weight_map"].update({LN: shard})

    def outside(index: dict[str, Any], folder: Path) -> None:
        (folder / two).rename(folder.parent / f"{folder.name}-outside.safetensors")
        index["weight_map"][LN] = f"../{folder.name}-outside.safetensors"

    return [
        _index("../ that exists", "not the name of a shard", outside),
        _index("../", "not the name of a shard", place("../x.safetensors")),
        _index("absolute path", "not the name of a shard", place("/etc/passwd")),
        _index("a URL", "not the name of a shard", place("https://example.org/x.safetensors")),
        _index("a pickle", "not the name of a shard", place("pytorch_model.bin")),
        _index("NUL in a name", "not the name of a shard", place("x\0.safetensors")),
        _index("a name of 1 MB", "not the name of a shard", place("x" * 1_000_000)),
        _index("a number as shard", "not the name of a shard", place(7)),
        _index("a hidden file", "not the name of a shard", place(".x.safetensors")),
        _index("missing shard", "which is missing", place("model-3.safetensors")),
        _index("shard deleted", "which is missing", lambda index, folder: (folder / two).unlink()),
        _index(
            "extra shard",
            "does not name the shard",
            lambda i, f: put(f, two.replace("00002", "00003", 1), b""),
        ),
        _index("tensor in the other shard", "", place(one)),
        _index("shard listed twice", "is in", lambda i, f: put(f, two, (f / one).read_bytes())),
        _index("tensor not named", "does not name tensor", lambda i, f: i["weight_map"].pop(LN)),
        _index("tensor that is nowhere", "where it is not", lambda i, f: i["weight_map"].update(x=one)),
        _index("total_size too small", "they have", lambda i, f: i["metadata"].update(total_size=1)),
        _index("total_size 2^62", "they have", lambda i, f: i["metadata"].update(total_size=1 << 62)),
        _index("total_size a text", "whole number", lambda i, f: i["metadata"].update(total_size="1")),
        _index("both kinds of weights", "which one", lambda i, f: put(f, WEIGHTS, safetensors())),
        _index("empty map", "weight_map", lambda i, f: i["weight_map"].clear()),
        _index("unknown key", "unknown key", lambda i, f: i.update(extra=1)),
        _index("duplicate name", "appears twice", lambda i, f: b'{"weight_map":{"a":"x","a":"y"}}'),
        _index("10^5 deep", "nested", lambda i, f: b'{"metadata":' * 100_000),
        _index("9 MB", "over the limit", lambda i, f: b" " * (9 << 20)),
        _index(
            "300 shards",
            "shards",
            lambda i, f: i["weight_map"].update({str(n): f"s{n}.safetensors" for n in range(300)}),
        ),
    ]


def tensor_cases() -> list[Case]:
    return [*_lengths(), *_headers(), *_layout(), *_contents(), *_indexes()]
