"""The two engines are one machine: same cycles, same values, in any order of PEs and in any host threads."""

from __future__ import annotations

import re
import signal

import numpy as np
import pytest

import wafer_lab as lab
from wafergpt.kernels import build, wafer_build
from wafergpt.wafer.machine import alu, isa, native, reference, run
from wafergpt.wafer.machine.errors import WaveletLeakError
from wafergpt.wafer.machine.program import Program
from wafergpt.wafer.machine.queues import Queues
from wafergpt.wafer.machine.run import Machine

WIDTH_X_HEIGHT = lab.WIDTH * lab.HEIGHT
needs_native = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")


@needs_native
def test_the_engines_agree_in_every_field_of_the_state_over_two_launches() -> None:
    """Memory, registers, queues, counters, trace hash; the second launch starts from the first one's end."""
    machines = [
        lab.load(Machine(lab.busy_program(), engine=name, check=True)) for name in ("native", "numpy")
    ]
    for _ in range(2):
        launches = [machine.launch("main") for machine in machines]
        assert launches[0] == launches[1]
        assert launches[0].skipped_cycles > 0
        assert lab.different(machines[0].state, machines[1].state) == []
    assert machines[0].trace_hash() == machines[1].trace_hash()


@needs_native
def test_a_hundred_runs_in_any_order_and_in_one_or_two_threads_are_one() -> None:
    image = lab.busy_program().build()
    hashes = set()
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(image.n_pes)
        machine = lab.load(Machine(image, engine="native", order=order, threads=1 + seed % 2))
        machine.launch("main")
        hashes.add(machine.trace_hash())
    assert len(hashes) == 1


@pytest.mark.parametrize("engine", ["numpy", pytest.param("native", marks=needs_native)])
def test_a_run_in_parts_is_the_whole_run(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one cycle and of seven: same events, memory, skipped cycles and recorded spans."""
    found = []
    for part in (run._PART, WIDTH_X_HEIGHT, 7 * WIDTH_X_HEIGHT):
        monkeypatch.setattr(run, "_PART", part)
        machine = lab.load(Machine(lab.busy_program(), engine=engine, check=True))
        machine.record([(0, 0), (3, 2)])
        launches = [machine.launch("main") for _ in range(2)]
        found.append((machine.trace_hash(), launches, repr(machine.recorded())))
    assert found[0] == found[1] == found[2]


@needs_native
def test_an_interrupt_ends_a_run_that_would_take_minutes() -> None:
    program = Program(32, 32)
    code = program.role("worker")
    with code.task("main"):
        code.li(code.argument, 1)
        with code.while_(code.argument, "==", 1):
            pass

    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(InterruptError):
            Machine(program, engine="native").launch("main")  # 100 million cycles of 1,024 PEs
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs_native
def test_a_planted_order_dependence_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that sees what its reader took in the same cycle: the reference then differs from the core."""

    def seen_at_once(self: Queues, q: np.ndarray, cycle: int) -> np.ndarray:
        return (
            self._state.q_tail[q] - (self._state.q_head[q] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        ).astype(np.int64)

    def run(engine: str) -> str:
        program = Program(1, 2)
        color = program.color("full")
        program.route(color, (0, 0), ("R", "S"))
        program.route(color, (0, 1), ("N", "R"))
        sender, receiver = program.role("sender", (0, 0)), program.role("receiver", (0, 1))
        x, y = sender.array("x", 64), receiver.array("y", 64)
        with sender.task("main"):
            sender.mov(sender.send(color, 64), x)
            sender.done()
        with receiver.task("main"):
            receiver.apply("exp", y, receiver.recv(color, 64))
            receiver.done()
        machine = Machine(program, engine=engine)
        machine.launch("main")
        return machine.trace_hash()

    assert run("numpy") == run("native")
    monkeypatch.setattr(Queues, "occupied", seen_at_once)
    assert run("numpy") != run("native")


@pytest.mark.parametrize("engine", ["numpy", pytest.param("native", marks=needs_native)])
def test_a_lost_wavelet_is_noticed(engine: str) -> None:
    machine = lab.load(Machine(lab.busy_program(), engine=engine, check=True))
    machine.state.created[3] += 1
    with pytest.raises(WaveletLeakError, match="lost or invented"):
        machine.launch("main")


@needs_native
def test_every_function_is_the_same_to_the_last_bit_and_near_the_true_one() -> None:
    """256 values: ordinary, huge, tiny, infinite, NaN. Bounds as the functions' docstrings state them."""
    rng = np.random.default_rng(3)
    values = {name: (rng.standard_normal(256) * 3).astype(np.float32) for name in "abc"}
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        88.0,
        89.0,
        -103.0,
        -104.0,
        3e9,
        -3e9,
        65519.0,
        1e-7,
    ]
    values["a"][: len(special)] = special
    machines = [Machine(lab.every_function(), engine=name) for name in ("native", "numpy")]
    for machine in machines:
        for name, value in values.items():
            machine.memcpy_h2d(name, value.reshape(1, 32, 8))
        machine.memcpy_h2d("whole", (np.arange(-128, 128) * 16777213).reshape(1, 32, 8))
        machine.launch("main")
    assert lab.different(machines[0].state, machines[1].state) == []
    exact = values["a"][len(special) :].astype(np.float64)
    for name, true in (("EXP", np.exp(exact)), ("TANH", np.tanh(exact))):
        got = machines[0].memcpy_d2h(f"{name} False").reshape(-1)[len(special) :]
        assert np.abs(got / true - 1).max() < 3e-7


def test_the_core_s_header_has_the_numbers_of_the_instruction_set() -> None:
    text = (wafer_build.SOURCE_DIR / "isa.h").read_text(encoding="utf-8")
    enums = dict(re.findall(r"enum (\w+) \{([^}]*)\}", text))
    prefixes = {"Op": "OP_", "Int": "INT_", "Alu": "ALU_", "Cond": "COND_", "Type": "TYPE_", "Kind": "KIND_"}
    prefixes |= {"Field": "FIELD_", "Fault": "FAULT_", "Stop": "STOP_", "Word": "W_"}
    for name, prefix in prefixes.items():
        names = [part.strip() for part in enums[name].split(",") if part.strip() != "N_ALU"]
        assert names == [prefix + member.name for member in getattr(isa, name)], name
    constants = dict(re.findall(r"(k\w+) = (\d+)", text))
    assert int(constants["kSlotWords"]) == isa.SLOT_WORDS
    assert int(constants["kQueues"]) == isa.N_QUEUES


def test_without_a_compiler_the_reference_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setattr(wafer_build, "_resolve", wafer_build._resolve.__wrapped__)
    machine = lab.load(Machine(lab.busy_program()))
    assert machine.engine_name == reference.ReferenceEngine.name
    machine.launch("main")


def test_half_precision_rounds_to_nearest_even() -> None:
    """Every float16, and the midpoints between neighbours."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1].astype(np.float64) + halves[1:]).astype(np.float32) / np.float32(2)
    words = np.concatenate([halves, middle]).view(np.uint32)
    expected = words.view(np.float32).astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(alu.bits_to_half(words), expected)
