"""Frozen dataclass <-> plain mapping <-> YAML, strict in both directions (no torch).

Every component owns a frozen keyword-only dataclass beside its code; this module turns any tree of
them into plain data and back, refuses unknown keys with a suggestion, checks types without coercing
them silently, and applies dotted overrides such as `optim.peak_lr=6e-3`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from wafergpt.errors import ConfigError, did_you_mean

C = TypeVar("C")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error: YAML's last-one-wins hides a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.YAMLError(
                        f"line {key.start_mark.line + 1}: the key '{key.value}' stands twice"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """YAML (or JSON, its subset) as plain data. Raises ConfigError with the parser's reason in one line."""
    try:
        return _StrictLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_finite(name: str, value: float, *, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ConfigError unless `value` is finite and within [minimum, maximum]."""
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise ConfigError(f"{name} = {value!r} is out of range; allowed: {minimum:g} to {maximum:g}")


def to_dict(config: Any) -> Any:
    """A config tree as plain dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return config


@functools.cache
def _field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_dict(cls: type[C], data: Any, where: str = "") -> C:
    """Build the dataclass `cls` from plain data; `where` is the dotted path used in messages.

    Raises ConfigError for an unknown key (with a suggestion), a missing key or a wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {type(data).__name__}")
    hints = _field_types(typing.cast(type, cls))
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown config key '{dotted}'{did_you_mean(str(key), list(known))}")
        values[key] = _convert(hints[key], value, dotted)
    for name, field in known.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise ConfigError(f"missing config key '{where + '.' if where else ''}{name}'")
    return cls(**values)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        failures = []
        for choice in choices:
            try:
                return _convert(choice, value, where)
            except ConfigError as failure:
                failures.append(failure)
        raise failures[-1]
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return origin(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(kind, value, where)


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        names = [str(member.value) for member in kind]
        if value not in names and not isinstance(value, kind):
            hint = did_you_mean(str(value), names)
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(names)}{hint}")
        return kind(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 6e-3 as text
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{where}: expected a number, got {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def override(config: C, assignments: Iterable[str]) -> C:
    """Return a copy of `config` with `dotted.key=value` assignments applied; values are YAML.

    Raises ConfigError for a malformed assignment, an unknown key or a value of the wrong type.
    """
    tree = to_dict(config)
    for assignment in assignments:
        dotted, separator, text = assignment.partition("=")
        require(bool(separator and dotted), f"'{assignment}' is not of the form key=value")
        node, keys = tree, dotted.strip().split(".")
        for depth, key in enumerate(keys):
            path = ".".join(keys[: depth + 1])
            if not isinstance(node, dict):
                raise ConfigError(f"'{'.'.join(keys[:depth])}' holds a value, so '{path}' does not exist")
            if key not in node:
                raise ConfigError(f"unknown config key '{path}'{did_you_mean(key, list(node))}")
            if depth < len(keys) - 1:
                node = node[key]
        try:
            node[keys[-1]] = _parse(text)
        except ConfigError as error:
            raise ConfigError(f"cannot read the value of '{assignment}': {error}") from None
    return from_dict(type(config), tree)


def load(cls: type[C], path: Path) -> C:
    """Read a YAML or JSON file into `cls`. Raises ConfigError naming the file."""
    try:
        data = _parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"cannot read config file '{path}': {error}") from None
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump(config: Any) -> str:
    """The config tree as YAML text, keys in declaration order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
