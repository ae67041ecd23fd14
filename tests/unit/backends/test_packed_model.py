"""The packed file: what is in it, what is refused, where it is kept, several writers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from native_lab import CONFIGS, PRECISIONS, config, needs_library, rows_of, stored_model, token_ids
from wafergpt.backends import packed_blocks, packed_model
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.packed_model import (
    Precision,
    layout,
    open_packed,
    pack_model,
    pack_once,
    packed_path,
    weights_hash,
)
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.errors import CheckpointError, StorageError
from wafergpt.kernels import native

pytestmark = needs_library
SHAPE = config()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "model.wgpack"
    pack_model(stored_model(SHAPE), Precision.INT8, path, source="abc")
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("huge_pages", [True, False])
def test_every_precision_comes_back(tmp_path: Path, precision: str, huge_pages: bool) -> None:
    path = tmp_path / "m"
    for shape in CONFIGS.values():
        pack_model(stored_model(shape), Precision(precision), path, source="s")
        model = open_packed(path, verify=True, huge_pages=huge_pages)
        assert (model.config, model.precision, model.source) == (shape, precision, "s")
        assert model.n_file_bytes == path.stat().st_size
        ids = token_ids(shape, 20)
        direct = NativeCPU.from_stored(stored_model(shape), precision=precision)
        assert np.array_equal(rows_of(NativeCPU(model), ids, [20]), rows_of(direct, ids, [20]))


def test_the_sizes_are_the_librarys() -> None:
    library = native.load()
    assert library.wn_page_tokens() == native.PAGE_TOKENS
    for format in native.Format:
        for n, k in [(1, 1), (64, 32), (65, 33), (131, 60), (50257, 768)]:
            assert native.panels_bytes(format, n, k) == library.wn_panels_bytes(format, n, k)


def test_bytes_per_parameter_of_the_111m_shape() -> None:
    """What the table in the module says, in figures: 4, 2, 1 and (70.8M at 4.5 bits, 38.6M at 8) bytes."""
    shape = config(d_model=768, n_layers=10, n_heads=12, vocab_size=50257, max_seq_len=2048, d_ffn=3072)
    n_matrix = shape.n_params - 2048 * 768
    found = {p: layout(shape, Precision(p)).n_bytes - 4 * 2048 * 768 for p in PRECISIONS}
    expected = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": (70.8 * 4.5 / 8 + 38.6) / 109.5}
    for precision, n_bytes in found.items():
        assert n_bytes / n_matrix == pytest.approx(expected[precision], rel=0.01)


def refusal(path: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_packed(path, **options)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_damage_is_refused_by_name(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    header_bytes = int.from_bytes(data[8:16], "little")

    def changed(at: int, new: bytes) -> Path:
        path = tmp_path / "changed"
        path.write_bytes(data[:at] + new + data[at + len(new) :])
        return path

    assert "No such file" in refusal(tmp_path / "absent")
    assert "not a packed model" in refusal(changed(0, b"X"))
    assert "claims" in refusal(changed(8, (1 << 60).to_bytes(8, "little")))
    assert "header is damaged" in refusal(changed(8, (header_bytes - 1).to_bytes(8, "little")))
    for at in range(16, 48 + header_bytes, 13):
        assert "header is damaged" in refusal(changed(at, bytes([data[at] ^ 1])))
    path = tmp_path / "short"
    for n_bytes in (0, 10, 47, 60, 5000, len(data) - 1):
        path.write_bytes(data[:n_bytes])
        refusal(path)
    path.write_bytes(data + b"x")
    assert f"{len(data) + 1} bytes, {len(data)} are due" in refusal(path)
    for at in (5000, len(data) // 2, len(data) - 40, len(data) - 1):
        flipped = changed(at, bytes([data[at] ^ 1]))
        for huge_pages in (True, False):
            assert "not those that were written" in refusal(flipped, huge_pages=huge_pages)
            open_packed(flipped, huge_pages=huge_pages, verify=False)  # on request alone
    (tmp_path / "folder").mkdir()
    refusal(tmp_path / "folder")


@pytest.mark.parametrize("block_bytes", [999, 4096, 70_000])
def test_blocks_of_any_size_and_their_order_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(packed_blocks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    path = tmp_path / "m"
    pack_model(stored_model(SHAPE), Precision.INT8, path)
    data = path.read_bytes()
    assert bytes(open_packed(path).body) == data[4096:-32]
    for at in range(4096, len(data), 7919):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert "not those that were written" in refusal(path)
    swapped = data[: 10 * block_bytes] if 12 * block_bytes < len(data) else b""
    if swapped:
        one, other = data[10 * block_bytes : 11 * block_bytes], data[11 * block_bytes : 12 * block_bytes]
        path.write_bytes(swapped + other + one + data[12 * block_bytes :])
        assert "not those that were written" in refusal(path)


def test_another_version_is_packed_anew(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_model, "VERSION", packed_model.VERSION + 1)
    read, written = packed_model.VERSION, packed_model.VERSION - 1
    assert f"layout version {written}, this program reads {read}" in refusal(packed)


def test_wrong_arrays_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    stored = stored_model(SHAPE)
    lacking = StoredModel(config=SHAPE, arrays={n: a for n, a in stored.arrays.items() if n != "ln_f.bias"})
    with pytest.raises(CheckpointError, match=r"'ln_f\.bias' is missing"):
        pack_model(lacking, Precision.INT8, tmp_path / "m")
    with pytest.raises(StorageError):
        pack_model(stored, Precision.INT8, tmp_path / "absent" / "m")
    assert list(tmp_path.iterdir()) == []


def test_it_is_kept_beside_the_model_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    beside = packed_path(folder, "hash", Precision.INT8)
    assert beside.parent == folder / "packed" and beside.name.startswith("int8-")
    names = {packed_path(folder, s, p).name for s in ("hash", "other") for p in Precision}
    assert len(names) == 8, "another source or precision is another file"
    monkeypatch.setattr(os, "access", lambda *_: False)  # as in a folder that may only be read
    elsewhere = packed_path(folder, "hash", Precision.INT8)
    assert elsewhere == tmp_path / "cache" / "packed" / beside.name
    assert packed_path(None, "hash", Precision.INT8) == elsewhere


def test_the_hash_of_weights_knows_every_one_of_them() -> None:
    plain = stored_model(SHAPE)
    hashes = {weights_hash(plain), weights_hash(stored_model(config(max_seq_len=79)))}
    for name in SHAPE.parameter_shapes():
        arrays = {**plain.arrays, name: plain.arrays[name] + np.float32(1e-3)}
        hashes.add(weights_hash(StoredModel(config=SHAPE, arrays=arrays)))
    assert len(hashes) == 2 + len(SHAPE.parameter_shapes())
    turned = {n: np.asfortranarray(a) for n, a in plain.arrays.items()}
    assert weights_hash(StoredModel(config=SHAPE, arrays=turned)) == weights_hash(plain)


def test_it_is_made_once_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = stored_model(SHAPE)
    path = pack_once(stored, Precision.INT4, folder=tmp_path, source="hash")
    first = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(packed_model, "pack_model", lambda *_, **__: pytest.fail("packed twice"))
        assert pack_once(stored, Precision.INT4, folder=tmp_path, source="hash") == path
    for damaged in (first[:-7], first[:5000] + bytes([first[5000] ^ 1]) + first[5001:]):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="it is made anew from the model"):
            again = pack_once(stored, Precision.INT4, folder=tmp_path, source="hash")
        assert again.read_bytes() == first
    backend = NativeCPU.from_stored(stored, precision="int4", folder=tmp_path, source="hash")
    assert backend.precision is Precision.INT4


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    stored, found = stored_model(SHAPE), []

    def write() -> None:
        found.append(pack_once(stored, Precision.INT8, folder=tmp_path, source="hash"))

    writers = [threading.Thread(target=write) for _ in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(found) == 6 and len(set(found)) == 1
    open_packed(found[0], verify=True)
    assert [p.name for p in (tmp_path / "packed").iterdir()] == [found[0].name]


def test_the_mapping_is_read_only(packed: Path) -> None:
    body = open_packed(packed, huge_pages=False).body
    with pytest.raises(ValueError, match="read-only"):
        body[0] = 1
