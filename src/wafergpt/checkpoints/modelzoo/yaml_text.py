"""YAML that a stranger wrote, as plain data: bounded before anything is built, strict, no objects.

A page of YAML can stand for gigabytes: an alias repeats what its anchor holds, and aliases nest. So the text
becomes a graph of nodes first, what the graph would unfold to is counted, and only then is it built.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml

from wafergpt.errors import ConfigError
from wafergpt.units import KIB

# The largest Cerebras_GPT/*.yaml has 4 KB, some 150 values and 7 levels. The limits are ours.
MAX_BYTES = 256 * KIB
MAX_VALUES = 20_000
MAX_DEPTH = 32


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds. Raises ConfigError naming the file and the rule."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hang
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"{path}: is not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from None
    return parse_yaml(data, str(path))


def parse_yaml(data: bytes, label: str) -> dict[str, Any]:
    """The mapping `data` holds; `label` names it in messages.

    Raises ConfigError for more than `MAX_BYTES`, `MAX_VALUES` (aliases unfolded) or `MAX_DEPTH`, a key that
    stands twice, a tag that asks for an object, or anything but one mapping with text keys.
    """

    def refuse(reason: str) -> NoReturn:
        raise ConfigError(f"{label}: {reason}")

    if len(data) > MAX_BYTES:
        refuse(f"more than {MAX_BYTES} bytes; a run's configuration has a few thousand")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"is not UTF-8: byte {error.start}")
    if _nests_too_deeply(text):
        refuse(f"more than {MAX_DEPTH} levels deep")
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                refuse("is empty")
            _unfolded(root, {}, 0)
            tree = loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{label}: {error}") from None
        refuse(" ".join(str(error).split()))
    except RecursionError:
        refuse(f"more than {MAX_DEPTH} levels deep")
    if not isinstance(tree, dict):
        refuse("does not hold a mapping")
    return tree


def _nests_too_deeply(text: str) -> bool:
    """Whether brackets alone, or indentation alone, may go deeper than allowed (a cheap look at the text)."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(0, depth - 1)
    indents = {len(line) - len(line.lstrip(" ")) for line in text.splitlines()}
    compact = max((line.count("- ") for line in text.splitlines()), default=0)
    return deepest > MAX_DEPTH or len(indents) > 4 * MAX_DEPTH or compact > 4 * MAX_DEPTH


def _unfolded(node: Any, known: dict[int, int | None], depth: int) -> int:
    """How many values `node` stands for, aliases unfolded. Raises ConfigError at a limit."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"more than {MAX_DEPTH} levels deep")
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ConfigError(f"line {node.start_mark.line + 1}: an alias stands inside its own anchor")
        return count
    known[id(node)] = None  # being counted
    count = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{line}: a key is not text")
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{line}: '<<' merges are not read; write the keys out")
            if key.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"{line}: the key '{key.value}' is not text")
            if key.value in seen:
                raise ConfigError(f"{line}: the key '{key.value}' stands twice")
            seen.add(key.value)
            count += 1 + _unfolded(value, known, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_unfolded(value, known, depth + 1) for value in node.value)
    if count > MAX_VALUES:
        raise ConfigError(f"more than {MAX_VALUES} values, aliases unfolded")
    known[id(node)] = count
    return count
