"""The checks, as functions: each returns the violations it saw and how many cases it tried.

The suites assert that there is none for the real store; `planted` bugs must produce some. A violation names
seed and case, so that it can be replayed alone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint_lab.fake_disk import MUTATIONS, Crash, FakeDisk
from checkpoint_lab.trainer import Fingerprint, State, expected_fingerprints, fingerprint
from wafergpt.checkpoints.files import FileLayer
from wafergpt.checkpoints.native import CheckpointStore
from wafergpt.errors import CheckpointError, RunLockedError, StorageError

ROOT = Path("/fake/run/checkpoints")
KEEP = 2
EXPECTED: list[Fingerprint] = expected_fingerprints(12)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EINTR)

StoreFactory = Callable[[FileLayer], CheckpointStore]


def real_store(files: FileLayer) -> CheckpointStore:
    return CheckpointStore(ROOT, keep=KEEP, files=files)


@dataclass
class Outcome:
    n_cases: int = 0
    violations: list[str] = field(default_factory=list)

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            self.violations.append(message)


def states(n_steps: int) -> Iterator[State]:
    """The trainer's state after step 1, 2, ... n_steps."""
    state = State()
    for _ in range(n_steps):
        state.advance()
        yield state


def save_steps(store: CheckpointStore, steps: list[int]) -> None:
    for state in states(max(steps)):
        for _ in range(steps.count(state.step)):
            state.save(store)


def load_step(outcome: Outcome, disk: FakeDisk, case: str, at_least: int, at_most: int) -> int:
    """Load with a fresh, honest store: something must be there, whole, and from the right range of steps."""
    try:
        checkpoint = CheckpointStore(ROOT, files=disk).load_newest()
    except CheckpointError as error:
        outcome.require(at_least == 0, f"{case}: lost everything: {error}")
        return 0
    step = checkpoint.step
    outcome.require(at_least <= step <= at_most, f"{case}: loaded step {step}, not {at_least}..{at_most}")
    outcome.require(
        fingerprint(checkpoint) == EXPECTED[step], f"{case}: step {step} holds other data than was saved"
    )
    return step


def no_half_checkpoint(outcome: Outcome, disk: FakeDisk, case: str) -> None:
    """Whatever carries a checkpoint's name is whole."""
    store = CheckpointStore(ROOT, files=disk)
    for path in store.paths():
        try:
            store.verify(path)
        except CheckpointError as error:
            outcome.require(False, f"{case}: half published: {error}")


@dataclass(frozen=True)
class Scenario:
    """Save `before` undisturbed, then `last` while something happens."""

    name: str
    before: tuple[int, ...]
    last: int


SCENARIOS = (
    Scenario("first save", (), 1),
    Scenario("second save", (1,), 2),
    Scenario("save and removal of an old one", (1, 2), 3),
    Scenario("the same step again", (1, 2), 2),
)


def prepared(make_store: StoreFactory, scenario: Scenario) -> tuple[FakeDisk, CheckpointStore, State]:
    disk = FakeDisk()
    store = make_store(disk)
    if scenario.before:
        save_steps(store, list(scenario.before))
    *_, state = states(scenario.last)
    return disk, store, state


def explore_crashes(
    make_store: StoreFactory, n_states: int, seed: int, scenarios: tuple[Scenario, ...] = SCENARIOS
) -> Outcome:
    """Cut the power before every call of a save; sample disk states of each cut; each must load and go on."""
    outcome, rng = Outcome(), random.Random(seed)
    cuts = [(scenario, number) for scenario in scenarios for number in _mutations(make_store, scenario)]
    per_cut = -(-n_states // len(cuts))
    for scenario, number in cuts:
        disk, store, state = prepared(make_store, scenario)
        disk.crash_at = number
        returned = False
        with contextlib.suppress(Crash):
            state.save(store)
            returned = True
        safe = max([*scenario.before, scenario.last if returned else 0, 0])
        for sample in range(per_cut):
            case = f"{scenario.name}, cut at call {number}, sample {sample}, seed {seed}"
            found = disk.after_crash(rng)
            outcome.n_cases += 1
            loaded = load_step(outcome, found, case, safe, scenario.last)
            no_half_checkpoint(outcome, found, case)
            if sample % 20 == 0:
                _goes_on(outcome, make_store, found, case, loaded + 1)
    return outcome


def _mutations(make_store: StoreFactory, scenario: Scenario) -> list[int]:
    """Numbers of the calls of the last save that change the disk, and one past its end."""
    disk, store, state = prepared(make_store, scenario)
    start = disk.n_calls
    state.save(store)
    numbers = [n for n in range(start, disk.n_calls) if disk.log[n][0] in MUTATIONS]
    return [*numbers, disk.n_calls]


def _goes_on(outcome: Outcome, make_store: StoreFactory, disk: FakeDisk, case: str, step: int) -> None:
    """The next run saves without ado and sweeps up what the dead one left."""
    *_, state = states(step)
    state.save(make_store(disk))
    load_step(outcome, disk, f"{case}, next save", step, step)
    left = [name for name in disk.list_directory(ROOT) if name.startswith(".")]
    outcome.require(not left, f"{case}: leftovers {left}")


@dataclass(frozen=True)
class Fault:
    """What goes wrong at which call, and what the save owes the caller then."""

    what: str
    attributes: dict[str, object]
    cause: str = ""  # the error must name it
    must_return: bool = False
    must_raise: bool = False


def sweep_errors(make_store: StoreFactory, seed: int, scenario: Scenario = SCENARIOS[2]) -> Outcome:
    """Fail every call of a save in every way; then free the disk and save on with the same store."""
    outcome, rng = Outcome(), random.Random(seed)
    disk, store, state = prepared(make_store, scenario)
    start = disk.n_calls
    state.save(store)
    for number in range(start, disk.n_calls):
        for fault in _faults(number, *disk.log[number]):
            case = f"{fault.what} at call {number} ({disk.log[number][0]} {disk.log[number][1]})"
            _one_fault(outcome, make_store, scenario, fault, case, rng)
    return outcome


def _faults(number: int, call: str, path: Path) -> Iterator[Fault]:
    """Before the rename no error may be swallowed: all those calls concern the temporary folder."""
    vital = any(part.startswith(".tmp-") for part in path.parts)
    full = os.strerror(errno.ENOSPC)
    for code in ERRORS:
        cause = os.strerror(code)
        yield Fault(cause, {"fail_at": {number: (code, False)}}, cause=cause, must_raise=vital)
    if call in ("rename", "close", "fsync", "mkdir", "unlink"):
        cause = os.strerror(errno.EIO)
        yield Fault(
            "EIO after effect", {"fail_at": {number: (errno.EIO, True)}}, cause=cause, must_raise=vital
        )
    if call == "write":
        yield Fault("short write", {"short_at": number}, must_return=True)
        attributes = {"short_at": number, "full_from": number + 1}
        yield Fault("short write, then full", attributes, cause=full, must_raise=True)
    yield Fault("full from here on", {"full_from": number}, cause=full)


def _one_fault(
    outcome: Outcome,
    make_store: StoreFactory,
    scenario: Scenario,
    fault: Fault,
    case: str,
    rng: random.Random,
) -> None:
    disk, store, state = prepared(make_store, scenario)
    for name, value in fault.attributes.items():
        setattr(disk, name, value)
    outcome.n_cases += 1
    returned = False
    try:
        state.save(store)
        returned = True
    except StorageError as error:
        clear = fault.cause in str(error) and "\n" not in str(error)
        outcome.require(clear, f"{case}: the message does not name the cause in one line: {error}")
    except OSError as error:
        outcome.require(False, f"{case}: unnamed error {error!r}")
    outcome.require(not (fault.must_raise and returned), f"{case}: error swallowed")
    outcome.require(not (fault.must_return and not returned), f"{case}: a harmless event failed the save")
    disk.fail_at, disk.short_at, disk.full_from = {}, None, None
    outcome.require(not disk.handles, f"{case}: leaks a handle")
    outcome.require(not disk.locked, f"{case}: leaves the lock")
    safe = max([*scenario.before, scenario.last if returned else 0])
    load_step(outcome, disk, case, safe, scenario.last)
    no_half_checkpoint(outcome, disk, case)
    for sample in range(3):
        load_step(
            outcome, disk.after_crash(rng), f"{case}, then a crash, sample {sample}", safe, scenario.last
        )
    _goes_on(outcome, lambda _: store, disk, case, scenario.last + 1)


def flipped_writes(make_store: StoreFactory) -> Outcome:
    """A bit that flips on the way from memory to the file is noticed by the save that wrote it."""
    outcome, scenario = Outcome(), SCENARIOS[2]
    disk, store, state = prepared(make_store, scenario)
    start = disk.n_calls
    state.save(store)
    for number in (n for n in range(start, disk.n_calls) if disk.log[n][0] == "write"):
        disk, store, state = prepared(make_store, scenario)
        disk.flip_at = number
        outcome.n_cases += 1
        try:
            state.save(store)
            outcome.require(False, f"flip in the write at call {number}: unnoticed")
        except StorageError:
            pass
        load_step(
            outcome, disk, f"flip in the write at call {number}", max(scenario.before), max(scenario.before)
        )
    return outcome


def interleave_writers(make_store: StoreFactory) -> Outcome:
    """At every call of one save a second process tries to save too: it is refused, the first one finishes."""
    outcome, scenario = Outcome(), SCENARIOS[2]
    disk, store, state = prepared(make_store, scenario)
    start = disk.n_calls
    state.save(store)
    locked = [n for n in range(start, disk.n_calls) if disk.log[n] != ("kind", ROOT)]
    for number in locked:
        case = f"second writer at call {number}"
        disk, store, state = prepared(make_store, scenario)
        refused = []

        def intrude(disk: FakeDisk = disk, refused: list[bool] = refused) -> None:
            *_, other = states(scenario.last)
            try:
                other.save(make_store(disk))
            except RunLockedError:
                refused.append(True)

        disk.before_call = {number: intrude}
        outcome.n_cases += 1
        try:
            state.save(store)
        except StorageError as error:
            outcome.require(False, f"{case}: the first writer failed: {error}")
        outcome.require(bool(refused), f"{case}: the second writer was let in")
        load_step(outcome, disk, case, scenario.last, scenario.last)
    return outcome


def retention(make_store: StoreFactory) -> Outcome:
    """Every set of damaged ones out of three, then a resume and saves: the last good one stays."""
    outcome = Outcome()
    for damaged in itertools.chain.from_iterable(itertools.combinations((1, 2, 3), n) for n in range(4)):
        disk = FakeDisk()
        save_steps(CheckpointStore(ROOT, keep=5, files=disk), [1, 2, 3])
        for step in damaged:
            damage(disk, CheckpointStore(ROOT, files=disk).root / f"step-{step:08d}", random.Random(step))
        good = [step for step in (1, 2, 3) if step not in damaged]
        resumed = load_step(outcome, disk, f"{damaged} damaged", max(good, default=0), max(good, default=0))
        store = make_store(disk)
        *_, state = states(resumed + 1)
        for _ in range(3):
            state.save(store)
            case = f"{damaged} damaged, step {state.step} saved"
            outcome.n_cases += 1
            newest = max([step for step in good if step > state.step] + [state.step])
            load_step(outcome, disk, case, newest, newest)
            whole = [path for path in store.paths() if _is_whole(disk, path)]
            outcome.require(
                any(path.name.startswith(f"step-{state.step:08d}") for path in whole), f"{case}: gone"
            )
            outcome.require(len(whole) <= KEEP, f"{case}: {len(whole)} verified ones kept")
            state.advance()
    return outcome


def _is_whole(disk: FakeDisk, path: Path) -> bool:
    try:
        CheckpointStore(ROOT, files=disk).verify(path)
    except CheckpointError:
        return False
    return True


def damage(disk: FakeDisk, path: Path, rng: random.Random) -> None:
    """Flip one bit of one file of a checkpoint."""
    name = rng.choice(sorted(disk._directory(path).entries))
    data = disk._directory(path).entries[name].data
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    disk._directory(path).entries[name].durable = bytes(data)


def random_histories(make_store: StoreFactory, n_histories: int, seed: int) -> Outcome:
    """Random sequences of save, crash, I/O error, full disk, damage and resume.

    Invariants: what the last acknowledged save published (or a damage left) loads, bit for bit; after an
    undisturbed save the disk holds at most keep + 1 checkpoints and the damaged one.
    """
    outcome = Outcome()
    one = int(1.05 * _checkpoint_bytes())  # later steps have longer numbers in their JSON
    for history in range(n_histories):
        rng = random.Random(f"{seed}-{history}")
        disk, safe, store, n_damaged, tale = FakeDisk(), 0, None, 0, []
        for _ in range(8):
            store = store or make_store(disk)
            step = load_step(outcome, disk, f"history {history} seed {seed}: {tale}", safe, 12) + 1
            if step > 11:
                break
            *_, state = states(step)
            event = rng.choice(("save", "save", "crash", "error", "full", "damage"))
            tale.append(f"{event} {step}")
            outcome.n_cases += 1
            ahead = disk.n_calls + rng.randrange(90)
            if event == "crash":
                disk.crash_at = ahead
            elif event == "error":
                disk.fail_at = {ahead: (rng.choice(ERRORS), rng.random() < 0.2)}
            elif event == "full":
                disk.full_from = ahead
            elif event == "damage" and len(CheckpointStore(ROOT, files=disk).paths()) > 1 and not n_damaged:
                damage(disk, CheckpointStore(ROOT, files=disk).paths()[0], rng)
                n_damaged, safe, store = 1, 0, None  # found at the next start, as on a real disk
                continue
            try:
                state.save(store)
                safe = step
                used, limit = disk.used_bytes(), (KEEP + 1 + n_damaged) * one
                swept = (
                    used <= limit or event == "error"
                )  # what an error kept from removal goes with the next save
                outcome.require(swept, f"history {history} seed {seed}: {tale}: uses {used} bytes")
            except Crash:
                disk, store = disk.after_crash(rng), None
            except StorageError:
                pass
            disk.crash_at, disk.fail_at, disk.full_from = None, {}, None
    return outcome


def _checkpoint_bytes() -> int:
    disk = FakeDisk()
    save_steps(real_store(disk), [1])
    return disk.used_bytes()
