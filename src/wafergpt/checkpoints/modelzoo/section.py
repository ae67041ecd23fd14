"""One mapping of a foreign configuration, read key by key: what nobody asked for is refused by name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from wafergpt.errors import ConfigError, did_you_mean

_MISSING = object()


class Section:
    """A mapping and its dotted place. Every key that is understood is taken; `finish` refuses the rest."""

    def __init__(self, table: Any, where: str, notes: list[str]) -> None:
        """`notes` collects lines for the user, shared by all sections of a file. Raises ConfigError."""
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: expected a mapping, got {table!r:.60}")
        self.where = where
        self.notes = notes
        self._table: dict[str, Any] = table
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def path(self, key: str) -> str:
        """The dotted name of a key."""
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """The value as it is. Raises ConfigError when it is missing and has no default."""
        self._asked.add(key)
        value = self._table.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"missing key '{self.path(key)}'")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number; YAML 1.1 reads `6e-4` as text, which is accepted."""
        value = self.take(key, default)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{self.path(key)}: expected a number, got {value!r:.60}")
        return float(value)

    def integer(self, key: str, default: Any = _MISSING, *, minimum: int = 0) -> int:
        """A whole number of at least `minimum`."""
        value = self.number(key, default)
        if not value.is_integer() or not minimum <= value < 2**53:
            raise ConfigError(
                f"{self.path(key)}: expected a whole number of at least {minimum}, got {value!r}"
            )
        return int(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path(key)}: expected true or false, got {value!r:.60}")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.path(key)}: expected text, got {value!r:.60}")
        return value

    def is_set(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.take(key, None) is not None

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse every value but `allowed`: what it would change, this package does not have."""
        if key in self and not any(_same(self.take(key), value) for value in allowed):
            names = ", ".join(_yaml(value) for value in allowed)
            raise ConfigError(
                f"{self.path(key)} = {_yaml(self.take(key))} is not supported; it must be {names}"
            )
        self._asked.add(key)

    def ignore(self, keys: Sequence[str]) -> None:
        """Keys that decide nothing in a run of ours."""
        self._asked.update(keys)

    def section(self, key: str, default: Any = _MISSING) -> Section:
        """The mapping under `key`; null counts as `default`."""
        value = self.take(key, default)
        if value is None and default is not _MISSING:
            value = default
        return Section(value, self.path(key), self.notes)

    def note(self, text: str) -> None:
        """Tell the user."""
        if text not in self.notes:
            self.notes.append(text)

    def finish(self) -> None:
        """Raise ConfigError for the first key that was never asked for."""
        for key in self._table:
            if key not in self._asked:
                hint = did_you_mean(key, sorted(self._asked))
                raise ConfigError(f"unknown key '{self.path(key)}'{hint}")


def _same(value: Any, wanted: Any) -> bool:
    """Equality in which true is not 1, and text is a number if it reads as one."""
    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    if isinstance(value, str) and isinstance(wanted, int | float):
        try:
            return float(value) == wanted
        except ValueError:
            return False
    if isinstance(value, str) and isinstance(wanted, str):
        return value.lower() == wanted.lower()
    return bool(value == wanted)


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r:.60}"
