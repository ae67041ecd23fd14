"""What a load may do, watched from inside its process: audit events, memory, processor time."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20
MEMORY_SHARE, MEMORY_BYTES = 1.2, 64 * MIB  # reliability bar: at most 1.2 x file + 64 MiB
CPU_S, CPU_S_PER_GIB = 2, 1  # reliability bar: at most 2 s + 1 s per GiB

# Everything by which a load could run code, leave the process or change the disk.
FORBIDDEN = (
    *("exec", "compile", "import", "marshal.", "pickle.", "code.", "ctypes.", "cpython.run"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.", "pty."),
    *("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown"),
    *("os.truncate", "os.utime", "os.setxattr", "os.putenv", "os.chdir", "os.kill", "shutil.", "tempfile."),
    *("sys.settrace", "sys.setprofile", "sys.addaudithook", "sys.unraisablehook"),
)


class Watch:
    """Counts forbidden events from `start` on. An audit hook cannot be taken away again: one per process."""

    def __init__(self, folder: Path, tamper: str) -> None:
        self.violations: list[str] = []
        self._folder = str(folder)
        self._tamper = tamper
        self._on = False
        sys.addaudithook(self._hook)

    def start(self) -> None:
        self._on = True

    def stop(self) -> None:
        self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            self._opened(*arguments)
        elif event == "mmap.__new__" and self._tamper:
            self._on = False
            _tamper(Path(self._folder) / "model.safetensors", self._tamper)
            self._on = True
        elif event.startswith(FORBIDDEN):
            self.violations.append(f"{event} {str(arguments)[:80]}")

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        """A bare name is opened through the folder's handle; `../../blobs` is the hub cache's."""
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else path
        inside = path in (self._folder, "../../blobs") or (isinstance(path, str) and "/" not in path)
        if not inside:
            self.violations.append(f"opened {path!r}")
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            self.violations.append(f"opened {path!r} for writing")


def _tamper(path: Path, how: str) -> None:
    size_bytes = path.stat().st_size
    if how == "grow":
        with path.open("ab") as file:
            file.write(b"x")
    elif how == "shrink":
        os.truncate(path, size_bytes // 2)
    else:
        path.write_bytes(bytes(size_bytes))
        os.utime(path, (1, 1))  # the clock is coarser than this test is fast


def limit(folder_bytes: int) -> None:
    """An allocation far beyond the bar fails, processor time beyond it kills; the peak is judged later."""
    now_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    allowed = int(
        now_bytes + (1 + MEMORY_SHARE) * folder_bytes + 2 * MEMORY_BYTES
    )  # the map and twice the bar
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    seconds = CPU_S + CPU_S_PER_GIB * (folder_bytes >> 30) + 1  # whole seconds, and what is used already
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reset_peak() -> int:
    """Start measuring the largest resident memory anew; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` (the peak) in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
