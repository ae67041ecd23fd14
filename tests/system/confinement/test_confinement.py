"""The walls around the reader of .bin files hold: each alone against what it is for, all against everything.

Each process tries every escape; without walls all succeed, so a wall that does nothing would be seen.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.checkpoints.torch_bin import confine

ESCAPES = Path(__file__).with_name("escapes.py")
COMPUTING = {"write to what is open", "compute"}
# What each wall must stop by itself.
STOPPED = {
    "": set(),
    "limits": {
        "read a file",
        "read a file in C",
        "make a file",
        "list a folder",
        "make a socket in C",
        "connect",
        "run a program",  # it cannot open its libraries
        "import",
        "take memory",
        "take time",
        "write much",
    },
    "network": {"connect"},
    "filter": {
        "read a file",
        "read a file in C",
        "make a file",
        "list a folder",
        "remove a file",
        "make a socket in C",
        "connect",
        "start a process",
        "run a program",
        "make code in memory",
        "import",
        "signal the parent",
    },
    "hook": {
        "read a file",
        "make a file",
        "list a folder",
        "remove a file",
        "connect",
        "start a process",
        "run a program",
        "make code in memory",
        "compile",
        "import",
        "signal the parent",
    },
}
NEEDED = {"filter": "rights "}  # the kernel asks for no_new_privs first


def tried(walls: str, folder: Path) -> dict[str, str]:
    command = [sys.executable, "-P", str(ESCAPES), str(folder), *walls.split()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True)
    results: dict[str, str] = json.loads(done.stdout)
    return results


def works_here(call: str) -> bool:
    """Whether this system has that wall: tried in a process of its own."""
    code = f"from wafergpt.checkpoints.torch_bin import confine as c; c.forgo_rights(); exit(not c.{call}())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wall", STOPPED)
def test_each_wall_stops_what_it_is_for(wall: str, tmp_path: Path) -> None:
    if wall == "network" and not works_here("leave_network"):
        pytest.skip("this system does not let its users make namespaces")
    if wall == "filter" and not works_here("filter_system_calls"):
        pytest.skip(f"no system-call filter for {platform.machine()} or on this system")
    results = tried(NEEDED.get(wall, "") + wall, tmp_path)
    expected = STOPPED[wall]
    if wall == "limits" and os.geteuid() != 0:
        expected = expected | {"start a process"}  # root may have any number
    assert {name for name, result in results.items() if result != "escaped"} == expected


def test_all_walls_leave_computing_and_nothing_else(tmp_path: Path) -> None:
    results = tried("all", tmp_path)
    assert {name for name, result in results.items() if result == "escaped"} == COMPUTING
    assert results["take time"] == "killed by SIGXCPU"
    assert not (tmp_path / "marker").exists()
    assert (tmp_path / "victim").exists()


def test_the_child_ends_with_its_parent() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            confine.forgo_rights()
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)  # the child is ready
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 60)  # its end of the pipe closes when it dies
    assert ready
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_the_filter_is_for_one_kind_of_machine() -> None:
    """Numbers of another machine mean other calls: its filter must refuse everything here."""
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}.get(platform.machine())
    if other is None or not works_here("filter_system_calls"):
        pytest.skip("no system-call filter on this system")
    code = (
        "import os; from wafergpt.checkpoints.torch_bin import confine as c; c.forgo_rights();"
        f"c.platform.machine = lambda: {other!r}; c.filter_system_calls(); os.write(1, b'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.stdout == b""
