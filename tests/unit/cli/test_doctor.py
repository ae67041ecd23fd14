"""The doctor: it finds what is there, and names the fix for what is not."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest

from wafergpt.cli import doctor
from wafergpt.kernels import build, native_build


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_it_reports_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.doctor(json=True) == 0
    report = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert report["numpy"]["detail"] == importlib.metadata.version("numpy")
    assert "threads" in report["torch"]["detail"]
    assert report["cpu"]["topic"] == "machine" and "cores usable" in report["cpu"]["detail"]
    assert {"avx2", "avx512_bf16", "amx_bf16", "compiler", "kernels", "plots: matplotlib", "cache"} <= set(
        report
    )
    assert doctor.doctor() == 0
    assert "  ok  python " in capsys.readouterr().out


def test_whatever_is_missing_names_its_fix_or_cannot_be_fixed() -> None:
    for finding in doctor.examine():
        if (
            not finding.present
            and finding.topic != "machine"
            and "kernels" not in (finding.name, finding.topic)
        ):
            assert finding.fix


def test_a_missing_optional_part_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "matplotlib")
    found = findings()["plots: matplotlib"]
    assert not found.present and found.fix == "pip install 'wafergpt[plots]'"
    assert "  --  plots: matplotlib" in doctor.render([found]) and found.fix in doctor.render([found])


def test_a_missing_core_package_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _hide(monkeypatch, "tokenizers")
    assert doctor.doctor() == 9
    assert "--  tokenizers" in capsys.readouterr().out


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("WAFERGPT_KERNELS", raising=False)
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path))  # no native library has been built here
    for builder in (build, native_build):
        builder._resolve.cache_clear()
    try:
        found = findings()
    finally:
        for builder in (build, native_build):
            builder._resolve.cache_clear()
    assert not found["compiler"].present and "g++" in found["compiler"].fix
    assert not found["kernels"].present and "torch does the work" in found["kernels"].detail
    assert not found["native backend"].present
    assert "torch generates: the native CPU backend is not there: no C++" in found["native backend"].detail


def test_an_instruction_set_that_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAFERGPT_ISA", "avx9")
    found = findings()["native backend"]
    assert not found.present and "torch generates" in found.detail


def test_what_starting_costs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        doctor, "STARTUP", {"python": "pass", "numpy": "import numpy", "no": "import no_such"}
    )
    assert doctor.doctor(json=True, startup=True) == 0
    report = [f for f in json.loads(capsys.readouterr().out) if f["topic"] == "startup"]
    assert [f["present"] for f in report] == [True, True, False]
    assert report[0]["detail"].endswith(" s for a process that does: pass")


def test_the_cache_may_not_exist_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path / "not" / "yet"))
    found = doctor._storage()[0]
    assert found.name == "cache" and found.present and str(tmp_path / "not" / "yet") in found.detail


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
