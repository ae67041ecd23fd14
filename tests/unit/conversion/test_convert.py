"""Every source into every target, proved; and every way in which a target could be wrong, refused."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_lab import MUP, STANDARD, TANH, stored_model
from wafergpt.checkpoints.huggingface.card import CardFacts
from wafergpt.checkpoints.native_model import write_run
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.conversion import convert as module
from wafergpt.conversion.convert import DType, Options, convert, target_format
from wafergpt.conversion.formats import Format, read
from wafergpt.conversion.staging import staging_beside
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.evaluation.certificate import Certificate, certificate_path
from wafergpt.evaluation.parity import Bounds
from wafergpt.model.config import Activation, GPTConfig

TARGETS = {Format.NATIVE: "run", Format.HUGGING_FACE: "hf", Format.GGUF: "m.gguf", Format.MODEL_ZOO: "m.mdl"}


def native(folder: Path, config: GPTConfig = TANH) -> str:
    write_run(stored_model(config), folder / "source")
    return str(folder / "source")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "source")


@pytest.mark.parametrize("config", [TANH, STANDARD, MUP], ids=["tanh", "erf", "mup"])
@pytest.mark.parametrize("to", TARGETS, ids=str)
def test_there_and_back_again(to: Format, config: GPTConfig, tmp_path: Path) -> None:
    target = tmp_path / TARGETS[to]
    told: list[str] = []
    certificate = convert(native(tmp_path, config), target, Options(to=to), tell=told.append)
    assert certificate.same and certificate.arrays is not None
    assert certificate.arrays.n_exact == len(config.parameter_shapes())
    assert Certificate.from_json(certificate_path(target).read_text()) == certificate
    assert told[-len(certificate.lines()) :] == certificate.lines()
    yaml = {"m.yaml"} if to is Format.MODEL_ZOO else set()
    assert set(leftovers(tmp_path)) == {target.name, certificate_path(target).name} - {"parity.json"} | yaml
    again = convert(str(target), tmp_path / "again", Options(to=Format.NATIVE))
    assert again.same
    back, stored = read(tmp_path / "again").model, stored_model(config)
    assert back.chat_template == stored.chat_template
    assert back.tokenizer is not None and stored.tokenizer is not None
    assert back.tokenizer.encode("the weather ") == stored.tokenizer.encode("the weather ")
    if config.mup is None or to in (Format.NATIVE, Format.MODEL_ZOO):
        for name, array in stored.arrays.items():
            np.testing.assert_array_equal(back.arrays[name], array)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.F32])
def test_rounded_weights(dtype: DType, tmp_path: Path) -> None:
    source = native(tmp_path)
    for to in (form for form, allowed in module.WRITTEN.items() if dtype in allowed):
        certificate = convert(source, tmp_path / TARGETS[to], Options(to=to, dtype=dtype))
        assert certificate.arrays is not None and certificate.arrays.n_rounded >= 8
        assert certificate.bounds.mean_kl is not None and certificate.found.mean_kl > 0
        strict = Options(to=to, dtype=dtype, max_kl=certificate.found.mean_kl / 2)
        with pytest.raises(CheckpointError, match=r"mean KL in nats .* is over the bound"):
            convert(source, tmp_path / f"strict-{TARGETS[to]}", strict)
    assert not [name for name in leftovers(tmp_path) if "strict" in name]


def changed(**replacements: Any) -> Callable[[StoredModel], StoredModel]:
    return lambda model: dataclasses.replace(model, **replacements)


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[StoredModel], StoredModel]:
    return lambda model: dataclasses.replace(
        model, arrays={**model.arrays, name: change(np.array(model.arrays[name]))}
    )


def swapped(model: StoredModel) -> StoredModel:
    arrays = dict(model.arrays)
    arrays["h.0.ln_1.bias"], arrays["h.0.ln_2.bias"] = arrays["h.0.ln_2.bias"], arrays["h.0.ln_1.bias"]
    return dataclasses.replace(model, arrays=arrays)


BUGS = {
    "transposed": (with_array("h.0.attn.c_proj.weight", lambda a: a.T), "'h.0.attn.c_proj.weight' was read"),
    "one ulp": (with_array("ln_f.bias", lambda a: np.nextafter(a, 9, dtype=a.dtype)), "weight 'ln_f.bias'"),
    "swapped": (swapped, "weight 'h.0.ln_1.bias' was read back changed"),
    "epsilon": (
        lambda model: changed(config=dataclasses.replace(model.config, layer_norm_eps=1e-3))(model),
        "layer_norm_eps is 0.001, was 1e-05",
    ),
    "activation": (
        lambda model: changed(config=dataclasses.replace(model.config, activation=Activation.GELU))(model),
        "activation is gelu, was gelu_tanh",  # too close at this size for the answers to tell
    ),
    "heads": (
        lambda model: changed(config=dataclasses.replace(model.config, n_heads=4))(model),
        "n_heads is 4, was 2",
    ),
    "tokenizer": (changed(tokenizer=None), "only one of the two has a tokenizer"),
    "template": (changed(chat_template="x"), "the chat template was read back changed"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_writer_with_a_bug_is_caught(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, message = BUGS[bug]
    write = module.write_folder
    monkeypatch.setattr(module, "write_folder", lambda model, *a, **k: write(spoil(model), *a, **k))
    source = native(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "hf")
    assert "would not be the same model and was not kept" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_tanh_for_erf_is_measured_and_may_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, told = native(tmp_path, STANDARD), []
    certificate = convert(source, tmp_path / "m.gguf", tell=told.append)
    (departure,) = certificate.departures
    assert 0 < departure.found.mean_kl < 1e-3 and certificate.found.mean_kl < 1e-9
    assert any("trained with erf: mean KL" in line for line in told)
    monkeypatch.setattr(module, "TANH_FOR_ERF", Bounds(reason="tiny", mean_kl=1e-15))
    with pytest.raises(CheckpointError, match=r"GELU changes this model too much: .*--accept-gelu"):
        convert(source, tmp_path / "n.gguf")
    assert not (tmp_path / "n.gguf").exists()
    assert convert(source, tmp_path / "n.gguf", Options(accept_gelu=True)).same
    assert convert(native(tmp_path / "..", TANH), tmp_path / "o.gguf").departures == ()


def test_the_source_is_gone_before_the_result_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[bool] = []
    seen: list[weakref.ref[StoredModel]] = []
    original_read, original_prove = module.read, module._prove

    def spy_read(*arguments: Any, **options: Any) -> Any:
        opened = original_read(*arguments, **options)
        seen.append(weakref.ref(opened.model))
        return opened

    def spy_prove(*arguments: Any) -> Certificate:
        alive.append(seen[0]() is not None)
        return original_prove(*arguments)

    monkeypatch.setattr(module, "read", spy_read)
    monkeypatch.setattr(module, "_prove", spy_prove)
    convert(native(tmp_path), tmp_path / "hf")
    assert alive == [False]


def test_the_card_has_the_runs_own_figure_and_no_path(tmp_path: Path) -> None:
    source = native(tmp_path)
    line = '{"step": 0, "held_out_nats_per_token": 1.25, "final": true}\n'
    (tmp_path / "source" / "metrics.jsonl").write_text(line)
    convert(source, tmp_path / "hf", Options(card=CardFacts(license="mit")))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "1.2500 nats per token" in card and 'license: "mit"' in card and "| source | source |" in card
    convert(str(tmp_path / "hf"), tmp_path / "again", Options(to=Format.NATIVE))
    texts = [p.read_text() for f in ("hf", "again") for p in (tmp_path / f).rglob("*.[jm][sd]*")]
    assert len(texts) > 8 and not [text for text in texts if str(tmp_path) in text]


def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "n.yaml").touch()
    (tmp_path / "c.gguf.parity.json").touch()
    cases: list[tuple[str, Options, str]] = [
        ("n.mdl", Options(), "n.yaml' exists already"),
        ("there", Options(), "exists already"),
        ("c.gguf", Options(), "c.gguf.parity.json' exists already"),
        ("no/where", Options(), "the folder .* does not exist"),
        ("m.gguf", Options(to=Format.TORCH_BIN), "'torch-bin' is read, not written"),
        ("m", Options(to=Format.GGUF), "does not end in .gguf"),
        ("m.mdl", Options(dtype=DType.F16), "'mdl' is written in f32, not in f16"),
        ("m", Options(max_kl=-1.0), "max_kl = -1.0 is out of range"),
        ("m", Options(max_kl=float("nan")), "max_kl = nan is out of range"),
        ("m", Options(dtype=DType.Q8_0), "'huggingface' is written in f32, f16, bf16, not in q8_0"),
    ]
    for name, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            convert("nothing", tmp_path / name, options)
    assert leftovers(tmp_path) == ["c.gguf.parity.json", "n.yaml", "there"]


def test_what_a_killed_conversion_left_is_removed_but_not_a_live_one(tmp_path: Path) -> None:
    source = native(tmp_path)
    dead, other = tmp_path / ".m.gguf.converting-1-00", tmp_path / ".n.gguf.converting-1-00"
    for folder in (dead, other):
        (folder / "safetensors").mkdir(parents=True)
        (folder / "m.gguf").write_bytes(b"half")
    with staging_beside(tmp_path / "m.gguf") as alive:
        assert not dead.exists()
        convert(source, tmp_path / "m.gguf")
        assert alive.is_dir()
    assert leftovers(tmp_path) == [other.name, "m.gguf", "m.gguf.parity.json"]


def test_formats_by_suffix() -> None:
    chosen = [target_format(Path(name), None, DType.F32) for name in ("a", "a.gguf", "a.MDL")]
    assert chosen == [Format.HUGGING_FACE, Format.GGUF, Format.MODEL_ZOO]
