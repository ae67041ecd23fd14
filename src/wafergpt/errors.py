"""Errors a user can cause or must know of: each has one clear line and its own exit code.

Layer 0: standard library only. The command line prints `str(error)` and exits with `exit_code`;
`docs/reference/exit_codes.md` lists them. Everything else that escapes is a bug of ours.
"""

from __future__ import annotations


class WaferGPTError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class ConfigError(WaferGPTError, ValueError):
    """A configuration value or command-line option is unknown, out of range or contradictory."""

    exit_code = 2


class DataError(WaferGPTError, ValueError):
    """A corpus, shard or tokenizer file is missing, damaged or does not fit."""

    exit_code = 3


class AssetError(WaferGPTError):
    """A published asset cannot be fetched or does not match its hash."""

    exit_code = 4


class CheckpointError(WaferGPTError):
    """No checkpoint can be loaded, or it belongs to another configuration."""

    exit_code = 5


class StorageError(WaferGPTError, OSError):
    """Writing failed (disk full, read-only, I/O error). What was saved before is intact."""

    exit_code = 6


class RunLockedError(WaferGPTError):
    """Another process is using the output folder."""

    exit_code = 7


class NonFiniteError(WaferGPTError, ArithmeticError):
    """Training met too many non-finite losses or gradients in a row."""

    exit_code = 8


class MissingDependencyError(WaferGPTError, ImportError):
    """An optional part is not installed; the message names the install line."""

    exit_code = 9


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


_SHOWN_CHARACTERS = 60


def shown(value: object) -> str:
    """`repr` on one printable line of at most 60 characters: for messages that quote a file."""
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _SHOWN_CHARACTERS
    short.maxlevel = 2  # of a nested value the outside is enough, and the work stays bounded
    try:
        text = short.repr(value)
    except ValueError:  # an integer of more digits than Python turns into text
        text = f"{type(value).__name__} too long to show"
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = (_SHOWN_CHARACTERS - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
