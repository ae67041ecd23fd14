"""Tries to get out of the confinement: one forked process for each attempt, after raising some walls.

    python -P escapes.py FOLDER WALL...    prints {attempt: "escaped" | "refused" | "killed by N"} as JSON

FOLDER is scratch.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wafergpt.checkpoints.torch_bin import confine

MEMORY_BYTES, CPU_S, FILE_BYTES = 64 * 2**20, 1, 4096
LIBC = ctypes.CDLL(None)
RAW_OPEN, RAW_SOCKET = LIBC.open, LIBC.socket  # looked up before anything watches
FOLDER = Path(sys.argv[1])
OUTPUT = os.open(FOLDER / "output", os.O_CREAT | os.O_RDWR)
(FOLDER / "victim").touch()
SERVER = socket.create_server(("127.0.0.1", 0))
PORT = SERVER.getsockname()[1]

WALLS: dict[str, Callable[[], object]] = {
    "limits": lambda: confine.limit_resources(MEMORY_BYTES, CPU_S, FILE_BYTES),
    "rights": confine.forgo_rights,
    "network": confine.leave_network,
    "filter": confine.filter_system_calls,
    "hook": confine.refuse_events,
    "all": lambda: confine.confine(MEMORY_BYTES, CPU_S, FILE_BYTES),
}


def spin() -> None:
    """Half a second of processor time more than is allowed."""
    while time.process_time() < CPU_S + 0.5:
        pass


def raw(handle: int) -> None:
    """What a C call returned: a handle, or -1."""
    if handle < 0:
        raise OSError


def forked() -> None:
    """Start a process."""
    if os.fork() == 0:
        os._exit(0)


def run(program: str) -> None:
    """Become another program, which exits with 0: as after an escape."""
    os.execv(program, [program])


def imported() -> None:
    """Import what is not loaded."""
    import colorsys  # noqa: F401


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read a file in C": lambda: raw(RAW_OPEN(b"/etc/passwd", os.O_RDONLY)),
    "make a file": lambda: (FOLDER / "marker").touch(),
    "list a folder": lambda: os.listdir("/"),
    "remove a file": lambda: os.unlink(FOLDER / "victim"),
    "make a socket in C": lambda: raw(RAW_SOCKET(socket.AF_INET, socket.SOCK_STREAM, 0)),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5),
    "start a process": forked,
    "run a program": lambda: run("/bin/true"),
    "make code in memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "compile": lambda: compile("1", "escape", "eval"),
    "import": imported,
    "take memory": lambda: bytearray(4 * MEMORY_BYTES),
    "take time": spin,
    "write much": lambda: [os.write(OUTPUT, bytes(FILE_BYTES)) for _ in range(2)],
    "signal the parent": lambda: os.kill(os.getppid(), 0),
}
ALLOWED: dict[str, Callable[[], object]] = {
    "write to what is open": lambda: (os.lseek(OUTPUT, 0, os.SEEK_SET), os.write(OUTPUT, b"x")),
    "compute": lambda: [bytearray(2**20) for _ in range(8)],
}


def attempt(walls: list[str], action: Callable[[], object]) -> str:
    """How an attempt ended behind these walls."""
    process = os.fork()
    if process == 0:
        for wall in walls:
            WALLS[wall]()
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return ("escaped", "refused")[min(os.WEXITSTATUS(status), 1)]


def main() -> None:
    """Try everything behind the walls named on the command line."""
    walls = sys.argv[2:]
    actions = ATTEMPTS | ALLOWED
    if not set(walls) <= {"limits", "all"}:
        del actions["take time"]  # nobody's business there, and slow
    print(json.dumps({name: attempt(walls, action) for name, action in actions.items()}))


if __name__ == "__main__":
    main()
