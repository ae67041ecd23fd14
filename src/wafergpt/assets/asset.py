"""What an asset is: where it lies, exactly which bytes it must be, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Registry(StrEnum):
    """Where an asset comes from; the value names it to the user."""

    PYPI = "PyPI"
    NPM = "npm"
    DEBIAN = "Debian"
    PYTHON = "Python itself"


@dataclass(frozen=True, kw_only=True)
class Member:
    """Files to take out of an archive: one path, or a pattern with `*` inside one folder, or below (`/**/`).

    `sha256` is of the file; for a pattern, of the lines `<sha256>  <path>` of its files in path order.
    Files from below a folder are kept side by side, with `+` for the `/` in their path, in `sha256` too.
    """

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One named asset. `archive_sha256` is checked except for Debian, whose archives differ per release."""

    name: str
    summary: str
    registry: Registry
    package: str
    version: str
    licence: str
    download_bytes: int = 0
    archive_sha256: str = ""
    members: tuple[Member, ...] = ()
    is_corpus: bool = True
    needs_sdist: bool = False
