"""What a process gives up before it reads a file nobody vouches for. Linux; nothing here can be taken back.

Four walls, each enough against most mistakes of the reader behind them: limits of the system, a network
namespace with no network in it, a filter that leaves the system calls of computing and of writing to what
is open, and a hook that refuses what Python reports before doing it. Numbers are from the kernel's headers:
linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/bpf_common.h, linux/sched.h, asm/unistd_64.h (x86-64)
and asm-generic/unistd.h (AArch64).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any, Final

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SIGKILL = 9
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SECCOMP_MODE_FILTER = 2
_ALLOW, _FAIL = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
# struct seccomp_data: number, architecture, instruction pointer (8 bytes), six arguments (8 bytes each).
_NUMBER_AT, _ARCHITECTURE_AT, _THIRD_ARGUMENT_AT = 0, 4, 32
_PROT_EXEC = 4

# AUDIT_ARCH_..., and the calls left: memory, reading and writing what is open, signals, locks, time, the end.
# mmap and mprotect come first: only without PROT_EXEC.
_CALLS: Final[dict[str, tuple[int, dict[str, int]]]] = {
    "x86_64": (
        0xC000003E,
        {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28, "read": 0}
        | {"write": 1, "close": 3, "lseek": 8, "pread64": 17, "rt_sigaction": 13, "rt_sigprocmask": 14}
        | {"rt_sigreturn": 15, "futex": 202, "sched_yield": 24, "clock_gettime": 228, "getrandom": 318}
        | {"getpid": 39, "gettid": 186, "tgkill": 234, "exit": 60, "exit_group": 231},
    ),
    "aarch64": (
        0xC00000B7,
        {"mmap": 222, "mprotect": 226, "munmap": 215, "brk": 214, "mremap": 216, "madvise": 233, "read": 63}
        | {"write": 64, "close": 57, "lseek": 62, "pread64": 67, "rt_sigaction": 134, "rt_sigprocmask": 135}
        | {"rt_sigreturn": 139, "futex": 98, "sched_yield": 124, "clock_gettime": 113, "getrandom": 278}
        | {"getpid": 172, "gettid": 178, "tgkill": 131, "exit": 93, "exit_group": 94},
    ),
}
_NOT_EXECUTABLE = ("mmap", "mprotect")


class ConfinedError(Exception):
    """Something was tried that reading weights does not need."""


def confine(memory_bytes: int, cpu_s: int, output_bytes: int) -> tuple[str, ...]:
    """Raise all four walls; returns the names of those this system has.

    From here on the process may use `memory_bytes` of address space beyond what it has now, `cpu_s` seconds
    of processor time in all, write files up to `output_bytes` long, and open nothing.
    """
    walls = ["limits", "audit hook"]
    limit_resources(memory_bytes, cpu_s, output_bytes)
    forgo_rights()
    if leave_network():
        walls.append("network namespace")
    if filter_system_calls():
        walls.append("system-call filter")
    refuse_events()
    return tuple(walls)


def limit_resources(memory_bytes: int, cpu_s: int, output_bytes: int) -> None:
    """Limits of setrlimit(2); see `confine`."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        used_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: (used_bytes + memory_bytes,) * 2,
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_FSIZE: (output_bytes,) * 2,
        resource.RLIMIT_NOFILE: (0, 0),  # what is open stays open
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (soft, hard) in limits.items():
        allowed = resource.getrlimit(kind)[1]
        if allowed != resource.RLIM_INFINITY:  # a limit of the caller's shell may be lower: it stands
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(kind, (soft, hard))


def forgo_rights() -> None:
    """No more rights through any program, no debugger, and death with the parent. Raises ConfinedError."""
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0), (_PR_SET_PDEATHSIG, _SIGKILL)):
        if _libc().prctl(option, value, 0, 0, 0) != 0:
            raise ConfinedError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def leave_network() -> bool:
    """Move to a network namespace that is empty; False where the system does not let its users do that."""
    return bool(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def filter_system_calls() -> bool:
    """Let every call fail (EPERM) but those of `_CALLS`; False where that is not possible.

    Needs `forgo_rights` first.
    """
    machine = platform.machine()
    if machine not in _CALLS:
        return False
    program = _program(*_CALLS[machine])
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count, then (aligned) the address.
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    done = _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog), 0, 0)
    return bool(done == 0)


def _program(architecture: int, calls: dict[str, int]) -> bytes:
    """The filter: struct sock_filter {code, jump if true, jump if false, operand} for each instruction."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),  # another one's numbers mean other calls
        (_RETURN, 0, 0, _FAIL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for name, number in calls.items():
        if name in _NOT_EXECUTABLE:
            steps += [
                (_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, _THIRD_ARGUMENT_AT),
                (_ANY_BIT, 0, 1, _PROT_EXEC),
                (_RETURN, 0, 0, _FAIL),
                (_RETURN, 0, 0, _ALLOW),
            ]
        else:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _FAIL))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def refuse_events() -> None:
    """Raise ConfinedError at every audit event from here on: open, import, compile, exec, socket, ..."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        raise ConfinedError(event)

    sys.addaudithook(refuse)


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return libc
