"""What is written, against the `gguf` library's own reader; what is refused; how much memory it takes."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wafergpt.checkpoints.gguf.layout import FILE_TYPES, GGUFKind, TensorType
from wafergpt.checkpoints.gguf.names import tensor_names
from wafergpt.checkpoints.gguf.reader import read_gguf
from wafergpt.checkpoints.gguf.writer import tensor_plan, write_gguf
from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.errors import CheckpointError, ConfigError, MissingDependencyError, NonFiniteError, StorageError
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.tokenizer.bpe import Tokenizer

gguf = pytest.importorskip("gguf")

TINY = GPTConfig(
    d_model=64, n_layers=2, n_heads=4, vocab_size=300, max_seq_len=16, activation=Activation.GELU_TANH
)


def model(config: GPTConfig = TINY, tokenizer: Tokenizer | None = None) -> StoredModel:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }
    return StoredModel(config=config, arrays=arrays, tokenizer=tokenizer)


def changed(name: str, value: float) -> StoredModel:
    arrays = {key: array.copy() for key, array in model().arrays.items()}
    arrays[name].flat[5] = value
    return replace(model(), arrays=arrays)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat with the other cat and that was that"] * 3, 270)


@pytest.mark.parametrize("kind", GGUFKind)
def test_the_library_reads_the_same_file(kind: GGUFKind, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours, path = replace(model(tokenizer=tokenizer), chat_template="{{ x }}"), tmp_path / "m.gguf"
    digest = write_gguf(ours, path, kind=kind)
    assert digest.size_bytes == path.stat().st_size
    theirs = gguf.GGUFReader(path)
    keys = {field.name: field.contents() for field in theirs.fields.values()}
    expected = {
        "general.architecture": "gpt2",
        "general.file_type": FILE_TYPES[kind],
        "gpt2.block_count": 2,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_text_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ x }}",
    }
    assert expected.items() <= keys.items()
    assert len(keys["tokenizer.ggml.tokens"]) == 300
    assert keys["tokenizer.ggml.token_type"][-30:] == [5] * 30  # rows the tokenizer does not use
    plan = {info.name: info for info in tensor_plan(TINY, kind)}
    names = tensor_names(TINY)
    read_back = read_gguf(path)
    assert [tensor.name for tensor in theirs.tensors] == list(names)
    for tensor in theirs.tensors:
        assert int(tensor.tensor_type) == plan[tensor.name].type
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(plan[tensor.name].shape)
        np.testing.assert_array_equal(read_back.arrays[names[tensor.name]], values)
    assert read_back.config == TINY and read_back.chat_template == "{{ x }}"
    assert read_back.tokenizer is not None and read_back.tokenizer.to_bytes() == tokenizer.to_bytes()


@pytest.mark.parametrize(
    ("kind", "relative"),
    [
        (GGUFKind.F32, 0.0),
        (GGUFKind.F16, 2.0**-11),  # half of the last of 10 + 1 bits
        (GGUFKind.BF16, 2.0**-8),  # of 7 + 1 bits
        (GGUFKind.Q8_0, None),
        (GGUFKind.Q4_0, None),
    ],
)
def test_values_are_off_by_at_most_half_a_step(
    kind: GGUFKind, relative: float | None, tmp_path: Path
) -> None:
    write_gguf(model(), tmp_path / "m.gguf", kind=kind)
    read_back = read_gguf(tmp_path / "m.gguf").arrays
    for name, array in model().arrays.items():
        far = np.abs(read_back[name] - array)
        if array.ndim == 1 or name == "wpe.weight":
            assert far.max() == 0, name
        elif relative is not None:
            assert (far <= relative * np.abs(array) + 2.0**-25).all(), name  # float16's smallest step
        else:
            largest = np.abs(array.reshape(-1, 32)).max(1)  # of each block
            wide = kind is GGUFKind.Q8_0 or name == "wte.weight"
            # Half a step of max / 127; Q4_0 has -8..7 steps of max / 8, so the far end lacks a whole one.
            step = (0.5 if wide else 1.0) * largest / (127 if wide else 8)
            assert (far.reshape(-1, 32).max(1) <= step * (1 + 2.0**-9) + largest * 2.0**-10).all(), name


def test_mup_is_folded_first(tmp_path: Path) -> None:
    mup = MuPConfig(base_d_model=32, base_d_ffn=128)
    config = replace(TINY, parametrization=Parametrization.MUP, mup=mup, init_std=None)
    write_gguf(model(config), tmp_path / "m.gguf")
    read_back = read_gguf(tmp_path / "m.gguf")
    assert read_back.config.parametrization is Parametrization.STANDARD
    np.testing.assert_allclose(
        read_back.arrays["wte.weight"], 10 * model(config).arrays["wte.weight"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("broken", "kind", "error", "reason"),
    [
        (
            model(replace(TINY, d_ffn=100)),
            GGUFKind.F32,
            ConfigError,
            "d_ffn = 100 is not 4",
        ),
        (model(replace(TINY, d_model=48, d_ffn=192)), GGUFKind.Q8_0, ConfigError, "not a multiple of 32"),
        (changed("wte.weight", 7e4), GGUFKind.F16, CheckpointError, "'wte.weight' holds 70000, which f16"),
        (changed("h.1.mlp.c_fc.weight", 1e6), GGUFKind.Q4_0, CheckpointError, "which q4_0 cannot"),
        (changed("wte.weight", 3.4e38), GGUFKind.BF16, CheckpointError, "which bf16 cannot"),
        (changed("ln_f.bias", np.nan), GGUFKind.F32, NonFiniteError, "'ln_f.bias' holds nan or infinity"),
        (changed("ln_f.bias", -np.inf), GGUFKind.Q8_0, NonFiniteError, "'ln_f.bias' holds nan or infinity"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_and_leaves_nothing(
    broken: StoredModel, kind: GGUFKind, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason) as caught:
        write_gguf(broken, tmp_path / "m.gguf", kind=kind)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(NonFiniteError):
        write_gguf(changed("ln_f.bias", np.nan), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot write"):
        write_gguf(model(), tmp_path / "nowhere" / "m.gguf")


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="270 entries, the model only 269"):
        write_gguf(model(replace(TINY, vocab_size=269), tokenizer), tmp_path / "m.gguf")


def test_the_library_is_needed_for_quantised_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(model(), tmp_path / "q.gguf", kind=GGUFKind.Q8_0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, name, None)
    for kind in (GGUFKind.F32, GGUFKind.F16, GGUFKind.BF16):
        write_gguf(model(), tmp_path / f"{kind}.gguf", kind=kind)
        assert set(read_gguf(tmp_path / f"{kind}.gguf").arrays) == set(TINY.parameter_shapes())
    with pytest.raises(MissingDependencyError, match=r"wafergpt\[gguf\]"):
        write_gguf(model(), tmp_path / "q4.gguf", kind=GGUFKind.Q4_0)
    with pytest.raises(MissingDependencyError, match=r"wafergpt\[gguf\]"):
        read_gguf(tmp_path / "q.gguf")


def test_memory_is_one_array_and_a_few_chunks(tmp_path: Path) -> None:
    """62 MB of weights made lazily, the largest array 16 MB; chunks of 4 MiB in and out, and 4 to round."""
    config = replace(TINY, d_model=1024, d_ffn=4096, vocab_size=2000)
    shapes = config.parameter_shapes()

    def maker(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
        return lambda: np.full(shape, 0.5, np.float32)

    arrays = LazyArrays({name: maker(shape) for name, shape in shapes.items()})
    tracemalloc.start()
    try:
        write_gguf(StoredModel(config=config, arrays=arrays), tmp_path / "m.gguf", kind=GGUFKind.BF16)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= 4 * 4096 * 1024 * 2 + 5 * 4 * 2**20  # one array may overlap the one before
    assert max(np.prod(shape) for shape in shapes.values()) == 4096 * 1024
    assert TensorType.BF16 in {info.type for info in tensor_plan(config, GGUFKind.BF16)}
