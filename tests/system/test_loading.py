"""`api.load`: every backend says the same, packed weights are found again, what does not fit is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import wafergpt
from wafergpt import api, loading
from wafergpt.backends import native_cpu
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.packed_model import SUFFIX
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.checkpoints.huggingface.folder import write_folder
from wafergpt.checkpoints.native_model import read_run, write_run
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.errors import ConfigError, MissingDependencyError, StorageError
from wafergpt.kernels import native
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

CONFIG = GPTConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=257, max_seq_len=48, init_std=0.3)
GREEDY = {"temperature": 0, "max_new_tokens": 12}


def stored(seed: int = 0) -> StoredModel:
    torch.manual_seed(seed)
    return StoredModel(config=CONFIG, arrays=GPT(CONFIG).to_arrays(), tokenizer=Tokenizer.train(["abc"], 257))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(stored(), tmp_path / "run")
    return tmp_path / "run"


def packed_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "packed").glob(f"*{SUFFIX}"))


def test_every_backend_writes_the_same(run: Path) -> None:
    texts = {}
    for backend in ("auto", "native_cpu", "torch_eager"):
        model = wafergpt.load(run, backend=backend)
        texts[backend] = model.generate("In the", **GREEDY).text
        assert model.notes == ()
    assert len(set(texts.values())) == 1
    kinds = [type(wafergpt.load(run, backend=b).backend) for b in ("auto", "torch_eager")]
    assert kinds == [NativeCPU, TorchEager]
    for precision in ("bf16", "int8", "int4"):
        assert len(wafergpt.load(run, precision=precision).generate("In the", **GREEDY).token_ids) == 12
    assert wafergpt.load(run, backend="torch_eager", precision="bf16").generate("In", **GREEDY).text


def test_packed_weights_are_found_again_and_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wafergpt.load(run).generate("ab", **GREEDY)
    assert len(packed_files(run)) == 1

    def unread(*_: object) -> None:
        raise AssertionError("the weights were read although their packed form is there")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "from_checkpoint", unread)
        assert wafergpt.load(run).generate("ab", **GREEDY) == first
        with pytest.raises(AssertionError, match="packed form"):
            wafergpt.load(run, precision="int8")
    newer = read_run(run)
    newer.arrays["ln_f.bias"][:] += 1
    before = packed_files(run)
    from wafergpt.checkpoints.native import CheckpointStore

    old = wafergpt.load(run)
    CheckpointStore(run / "checkpoints").save(
        7,
        {"model": newer.arrays},
        {"config.json": {"model": wafergpt.config.to_dict(CONFIG)}},
        {"tokenizer.json": newer.tokenizer.to_bytes()},
    )
    new = wafergpt.load(run)
    assert (old.step, new.step) == (0, 7) and new.generate("ab", **GREEDY) != first
    assert len(packed_files(run)) == 1 and packed_files(run) != before, "one file of each precision stays"


def test_a_changed_folder_is_packed_anew(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    write_folder(stored(), folder)
    first = wafergpt.load(folder).generate("ab", **GREEDY)
    names = packed_files(folder)
    assert wafergpt.load(folder).generate("ab", **GREEDY) == first and packed_files(folder) == names
    weights = folder / "model.safetensors"
    status, data = weights.stat(), bytearray(weights.read_bytes())
    data[-3000:] = bytes(3000)
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a careless copy would
    wafergpt.load(folder)
    assert packed_files(folder) != names


def test_generation_needs_no_torch(run: Path) -> None:
    """Neither torch nor transformers is imported, the first time nor later."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import wafergpt; from wafergpt import api\n"
        f"model = wafergpt.load({str(run)!r}, precision=sys.argv[1])\n"
        "print(model.generate('In the', temperature=0, max_new_tokens=12).text.encode())"
    )
    for precision in ("f32", "f32", "int8"):
        done = subprocess.run(
            [sys.executable, "-c", code, precision], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    blocked = code.replace(
        "model.generate", "wafergpt.load(model.checkpoint_path, backend='torch_eager').generate"
    )
    done = subprocess.run([sys.executable, "-c", blocked, "f32"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "torch" in done.stderr, "the block works"


def test_without_the_native_library(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(isa: str | None = None) -> str:
        raise MissingDependencyError("no C++ compiler")

    monkeypatch.setattr(native, "choose_isa", missing)
    model = wafergpt.load(run)
    assert isinstance(model.backend, TorchEager)
    assert model.notes == ("torch does the work, not the native backend: no C++ compiler",)
    for options in ({"backend": "native_cpu"}, {"precision": "int8"}):
        with pytest.raises(MissingDependencyError, match="no C\\+\\+ compiler"):
            wafergpt.load(run, **options)
    assert wafergpt.load(run, backend="torch_eager").notes == ()


def test_a_full_disk_falls_back_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(native_cpu, "pack_once", full)
    model = wafergpt.load(run)
    assert isinstance(model.backend, TorchEager) and "no space left" in model.notes[0]
    with pytest.raises(StorageError):
        wafergpt.load(run, backend="native_cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "native"}, "backend 'native' is not one of auto, native_cpu.*did you mean 'native_cpu'"),
        ({"precision": "int9"}, "precision 'int9' is not one of"),
        ({"backend": "torch_eager", "precision": "int4"}, "torch_eager computes in f32 or bf16; int4 needs"),
        ({"backend": "native_cpu", "device": "cuda"}, "native_cpu runs on the CPU, not on 'cuda'"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(run: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wafergpt.load(run, **options)


def test_samples_and_beams(run: Path) -> None:
    model = wafergpt.load(run)
    first, second = model.samples("ab", n=2, seed=5, max_new_tokens=9)
    assert first == model.generate("ab", seed=5, max_new_tokens=9) != second
    best, other = model.samples("ab", n=2, n_beams=4, temperature=0, max_new_tokens=9)
    assert best.text and best.token_ids != other.token_ids
    with pytest.raises(ConfigError, match="beam search is greedy"):
        model.samples("ab", n_beams=4)


def test_next_tokens_are_the_models_own(run: Path) -> None:
    tokenizer = Tokenizer.train(["abc"], 257)
    logits = GPT.load(run)(torch.tensor([tokenizer.encode("ab")]), n_logits=1).logits[0, 0]
    expected = logits.softmax(-1).topk(3)
    found = wafergpt.load(run).next_tokens("ab", n=3)
    assert [text for text, _ in found] == [tokenizer.decode([i]) for i in expected.indices.tolist()]
    np.testing.assert_allclose([p for _, p in found], expected.values.detach(), rtol=1e-4)


def test_evaluation_agrees_between_backends(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The wafer holds all of it. " * 6, encoding="utf-8")
    losses = [
        api.evaluate(wafergpt.load(run, backend=b), [text], stride=12).rows[0].nats_per_token
        for b in ("native_cpu", "torch_eager")
    ]
    # Logits of size 10 from some 50 float32 operations in two orders: 2^-24 * 10 each.
    np.testing.assert_allclose(losses[0], losses[1], atol=3e-5)
