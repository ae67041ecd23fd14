"""The AMX kernels: their instructions carried out by amx_machine.cpp here, by the CPU where it has them.

`test_native_kernels` and `test_native_model` run on `amx` too; here is what is its own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import amx_lab
from native_lab import Weights, needs_library, product
from wafergpt.cli import doctor
from wafergpt.errors import ConfigError
from wafergpt.kernels import native, native_build
from wafergpt.kernels.native import Format

pytestmark = needs_library
needs_machine = pytest.mark.skipif(
    amx_lab.machine() is None, reason="this CPU has AMX, or not the AVX-512 that can stand in for it"
)
on_amx = pytest.mark.skipif(
    "amx" not in (native.supported_isas() if native_build.status().available else []),
    reason="this CPU has no AMX",
)


def draw(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def wrong_products(isa: str) -> str:
    probe = native.load().wn_probe_wrong_products
    probe.argtypes, probe.restype = [ctypes.c_char_p], ctypes.c_char_p
    return str(probe(isa.encode()).decode())


def count() -> int:
    machine = amx_lab.machine()
    assert machine is not None
    return int(machine.amx_machine_count())


@needs_machine
@pytest.mark.parametrize("rows", [1, 7, 15, 16, 17, 31, 32, 33, 64, 96])
def test_int8_is_every_other_instruction_sets_to_the_bit(rows: int) -> None:
    for n, k in ((64, 64), (70, 63), (200, 65), (64, 4), (66, 1200)):
        w, x = Weights.pack(Format.INT8, draw((n, k), 1)), draw((rows, k), 2)
        before = count()
        assert np.array_equal(product("amx", w, x), product("avx512_vnni", w, x)), (n, k)
        assert (count() > before) == (rows > 6), "six rows and fewer take the vectors"


@needs_machine
def test_bf16_takes_tiles_for_one_row_too_and_k_decides_the_order() -> None:
    """In company of 1 to 64, over whole tiles, a part of one, and several passes."""
    for k in (1, 31, 32, 33, 300, 1200):
        w, x = Weights.pack(Format.BF16, draw((70, k), 1)), draw((64, k), 2)
        whole = product("amx", w, x)
        before = count()
        for parts in ([1] * 64, [16] * 4, [17, 31, 15, 1], [32, 32], [33, 31]):
            assert np.array_equal(product("amx", w, x, parts=parts), whole), (k, parts)
        assert count() > before


@pytest.mark.parametrize("isa", [i for i in native.ISAS if i != "amx"])
def test_the_check_before_use_passes_what_is_right(isa: str) -> None:
    if isa not in native.supported_isas():
        pytest.skip(f"this CPU has no {isa}")
    assert wrong_products(isa) == ""


@needs_machine
def test_the_check_before_use_finds_what_is_wrong() -> None:
    assert wrong_products("amx") == ""
    with amx_lab.planted(1):
        assert wrong_products("amx") == "its int8 products are wrong"
    with amx_lab.planted(2):
        assert wrong_products("amx") == "its int8 products are wrong"
    with amx_lab.planted(3):
        assert wrong_products("amx") == "its bfloat16 products are wrong"
    with amx_lab.planted(4):
        assert wrong_products("amx") == "its bfloat16 rows depend on how many there are"


@needs_machine
def test_without_the_stand_in_amx_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="WAFERGPT_ISA = 'amx': this CPU has scalar, "):
        native.choose_isa("amx")


def test_amx_that_cannot_be_used_is_not_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(name: str) -> tuple[int, str]:
        return (-2, "its int8 products are wrong") if name == "amx" else (int(name == "scalar"), "")

    monkeypatch.setattr(native, "_isa", one)
    with pytest.warns(UserWarning, match="'scalar' kernels instead of 'amx': its int8 products are wrong"):
        assert native.choose_isa() == "scalar"
    with pytest.raises(ConfigError, match="this CPU has scalar; of 'amx', its int8 products are wrong"):
        native.choose_isa("amx")
    found = {finding.name: finding for finding in doctor.examine()}["native backend"]
    assert found.present and found.detail.endswith("; amx not used: its int8 products are wrong")


@on_amx
def test_on_a_cpu_with_amx_it_is_checked_and_chosen() -> None:
    assert native.broken_isas() == {}
    assert native.choose_isa() == "amx"
    assert wrong_products("amx") == ""


@needs_machine
def test_what_the_manual_forbids_ends_the_stand_in() -> None:
    """A tile that has no shape: the child dies with the reason."""
    program = "import amx_lab; amx_lab.machine().amx_machine_misuse()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and "amx_machine: a tile without shape" in done.stderr
