"""What the command line says when something goes wrong: one line and an exit code for any exception.

The codes are listed in `docs/reference/exit_codes.md`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from wafergpt.errors import MissingDependencyError, StorageError, WaferGPTError

OUT_OF_MEMORY = 10
INTERNAL = 70  # EX_SOFTWARE of sysexits.h: a bug of ours
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
READER_GONE = 141  # 128 + SIGPIPE, the end of head's or less's other side in any shell
TERMINATED = 143  # 128 + SIGTERM

_STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory")  # torch raises RuntimeError with these


class Terminated(BaseException):
    """SIGTERM, raised so that a verb puts away what it has half done, as it does after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """`message` is one line without the leading `error: `."""

    message: str
    exit_code: int


def describe_failure(error: BaseException) -> Failure:
    """The line and the exit code for `error`."""
    message, exit_code = _describe(error)
    return Failure(message=" ".join(message.split()), exit_code=exit_code)


def _describe(error: BaseException) -> tuple[str, int]:
    import typer

    if isinstance(error, WaferGPTError):
        return str(error) or type(error).__name__, error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", INTERRUPTED
    if isinstance(error, Terminated):
        return "ended by SIGTERM", TERMINATED
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return "out of memory; use a smaller model, micro-batch or sequence", OUT_OF_MEMORY
    if isinstance(error, ModuleNotFoundError) and not (error.name or "wafergpt").startswith("wafergpt"):
        return (
            f"the Python package '{error.name}' is not installed; wafergpt doctor says how to install it",
            MissingDependencyError.exit_code,
        )
    if isinstance(error, OSError) and error.strerror:
        return _describe_os_error(error)
    return (
        f"internal error ({type(error).__name__}: {error}); a bug of ours: report what --debug shows",
        INTERNAL,
    )


def _is_torch_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _OUT_OF_MEMORY_PHRASES)


def _describe_os_error(error: OSError) -> tuple[str, int]:
    where = f": '{error.filename}'" if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full while writing{where}; what was saved before is intact", StorageError.exit_code
    exit_code = StorageError.exit_code if error.errno in _STORAGE_ERRNOS else WaferGPTError.exit_code
    return f"{(error.strerror or '').lower()}{where}", exit_code
