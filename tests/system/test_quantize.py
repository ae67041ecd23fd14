"""`wafergpt quantize` as typed: what is kept is proven, what is not good enough leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wafergpt
from model_lab import TANH, stored_model
from native_lab import needs_library
from wafergpt.backends import native_cpu
from wafergpt.backends.packed_blocks import BlockDigest
from wafergpt.checkpoints.native_model import write_run
from wafergpt.cli.main import main
from wafergpt.config import to_dict
from wafergpt.conversion import quantize as module
from wafergpt.conversion.quantize import MAX_RISE_PERCENT, quantize
from wafergpt.errors import CheckpointError, ConfigError, MissingDependencyError
from wafergpt.evaluation.certificate import Certificate, HeldOutRise
from wafergpt.kernels import native
from wafergpt.tokenizer.bpe import Tokenizer

pytestmark = needs_library
TEXT = "the whether of the weather\n" * 6


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(stored_model(TANH), folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8", "int4"])
def test_what_is_kept_is_proven_and_used(
    precision: str, run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    assert cli("quantize", run, target, "--precision", precision, "--data", text, "--max-rise", 20) == 0
    said = capsys.readouterr().out
    assert f"wrote {target}" in said and "held-out bits/byte" in said and "verdict: the same" in said
    assert sorted(path.name for path in target.iterdir()) == ["model.wgpack", "parity.json", "tokenizer.json"]
    certificate = Certificate.from_json((target / "parity.json").read_text(encoding="utf-8"))
    assert certificate.same and certificate.target.format == f"packed {precision}"
    assert isinstance(certificate.held_out, HeldOutRise)
    assert certificate.held_out.target_bits_per_byte > 0 and certificate.held_out.max_rise_percent == 20

    model = wafergpt.load(target)
    direct = wafergpt.load(run, precision=precision)
    options = {"temperature": 0, "max_new_tokens": 10}
    expected = direct.generate("the wea", **options)
    assert model.generate("the wea", **options) == expected
    assert cli("generate", "the wea", "--model", target, "--greedy", "--max-new-tokens", 10) == 0
    assert capsys.readouterr().out == f"the wea{expected.text}\n"
    assert cli("eval", "--model", target, "--data", text) == 0
    assert f"{certificate.held_out.target_bits_per_byte:.4f}" in capsys.readouterr().out
    assert cli("verify", run, target) == 0


def test_certificates_that_say_less_are_still_read(run: Path, tmp_path: Path) -> None:
    certificate = quantize(str(run), tmp_path / "small", "int8")
    assert certificate.held_out is None
    data = certificate.to_json().replace('  "held_out": null,\n', "")
    assert Certificate.from_json(data) == certificate


def test_a_model_that_lost_too_much_is_not_kept(
    run: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    with pytest.raises(CheckpointError, match=r"mean KL in nats .* is over the bound of 1e-12"):
        quantize(str(run), target, "int4", max_kl=1e-12)
    with pytest.raises(CheckpointError, match=r"bits/byte rise by .* %, over the bound of 0 %"):
        monkeypatch.setattr(module, "_rise", worse(module._rise))
        quantize(str(run), target, "int8", data=[text], max_rise_percent=0)
    assert [path.name for path in tmp_path.iterdir()] == [text.name]


def worse(measure: object) -> object:
    def measured(*arguments: object) -> HeldOutRise:
        found = to_dict(measure(*arguments))  # type: ignore[operator]
        return HeldOutRise(**{**found, "target_bits_per_byte": 1.001 * found["source_bits_per_byte"]})

    return measured


def test_damaged_scales_are_found(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug in packing: every bound but the derived one would have to be guessed."""
    pack = module.pack_model

    def careless(model: object, precision: object, path: Path, **options: object) -> None:
        pack(model, precision, path, **options)  # type: ignore[arg-type]
        packed = module.NativeCPU.from_packed(path)
        places = native_cpu.layout(packed.config, packed.precision)
        section = places.sections["h.0.mlp.c_fc.weight", "scales"]
        body = path.stat().st_size - 32 - places.n_bytes
        with path.open("r+b") as file:
            file.seek(body + section.begin)
            scales = np.frombuffer(file.read(section.n_bytes), np.float32) * 40
            file.seek(body + section.begin)
            file.write(scales.tobytes())
            digest = BlockDigest()  # a careless packer hashes what it wrote
            file.seek(0)
            digest.update(memoryview(file.read(body + places.n_bytes)))
            file.seek(body + places.n_bytes)
            file.write(digest.digest())

    monkeypatch.setattr(module, "pack_model", careless)
    with pytest.raises(CheckpointError, match="loses too much and was not kept: mean KL"):
        quantize(str(run), tmp_path / "small", "int8")
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("pack_model", "compare", "_publish"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, step, interrupted)
            quantize(str(run), tmp_path / "small", "int8")
        assert not list(tmp_path.iterdir()), step


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{run}", "{run}"], 2, "exists already"),
        (["{run}", "{new}", "--precision", "int5"], 2, "precision 'int5' is not one of"),
        (["{run}", "{new}", "--max-kl", "-1"], 2, "max_kl"),
        (["{run}", "{new}", "--max-rise", "1"], 2, "max_rise_percent needs data"),
        (["{new}", "{new}"], 5, "does not exist"),
        (["{run}", "{new}", "--data", "{new}.txt"], 3, "new.txt"),
        (["{run}", "{new}/deep/er"], 2, "does not exist"),
    ],
)
def test_refusals_are_one_line(
    words: list[str], code: int, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("quantize", *(word.format(run=run, new=tmp_path / "new") for word in words)) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_without_tokenizer_or_library(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    write_run(replace(stored_model(TANH), tokenizer=None), tmp_path / "bare")
    with pytest.raises(CheckpointError, match="holds no tokenizer; `wafergpt convert --tokenizer` adds one"):
        quantize(str(tmp_path / "bare"), tmp_path / "small", "int8")

    def missing(isa: str | None = None) -> str:
        raise MissingDependencyError("no C++ compiler")

    quantize(str(run), tmp_path / "kept", "int8")
    monkeypatch.setattr(native, "choose_isa", missing)
    with pytest.raises(MissingDependencyError, match="no C"):
        quantize(str(run), tmp_path / "small", "int8")
    with pytest.raises((MissingDependencyError, ConfigError), match="no C"):
        wafergpt.load(tmp_path / "kept")


def test_hostile_folders_are_refused(run: Path, tmp_path: Path) -> None:
    def damaged(name: str, change: object) -> Path:
        folder = tmp_path / name
        quantize(str(run), folder, "int8")
        change(folder)  # type: ignore[operator]
        return folder

    def flip(folder: Path, at: int) -> None:
        data = bytearray((folder / "model.wgpack").read_bytes())
        data[at] ^= 1
        (folder / "model.wgpack").write_bytes(data)

    def cut(folder: Path) -> None:
        data = (folder / "model.wgpack").read_bytes()
        (folder / "model.wgpack").write_bytes(data[:-100])

    def other_tokenizer(folder: Path) -> None:
        many = Tokenizer.train(["the whether of the weather and all of its many letters " * 40], 288)
        (folder / "tokenizer.json").write_bytes(many.to_bytes())

    cases = {
        "magic": (lambda f: flip(f, 0), "not a packed model"),
        "header": (lambda f: flip(f, 60), "the header is damaged"),
        "cut": (cut, "bytes are due|are due"),
        "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        "other tokenizer": (other_tokenizer, "entries, the model only"),
    }
    for name, (change, message) in cases.items():
        folder = damaged(name, change)
        with pytest.raises(Exception, match=message) as caught:
            wafergpt.load(folder).generate("the", max_new_tokens=1)
        assert isinstance(caught.value, wafergpt.errors.WaferGPTError), name


def test_only_its_own_precision_and_backend(run: Path, tmp_path: Path) -> None:
    quantize(str(run), tmp_path / "small", "int8")
    assert wafergpt.load(tmp_path / "small", precision="int8").config.d_model
    for options in ({"precision": "int4"}, {"backend": "torch_eager"}):
        with pytest.raises(ConfigError, match="is quantized"):
            wafergpt.load(tmp_path / "small", **options)
    assert cli("convert", tmp_path / "small", tmp_path / "hf") == CheckpointError.exit_code
    assert set(MAX_RISE_PERCENT) == set(native_cpu.Precision)
