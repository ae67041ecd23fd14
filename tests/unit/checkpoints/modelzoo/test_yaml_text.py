"""YAML from strangers: bounded before anything is built, one line naming file and rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wafergpt.checkpoints.modelzoo.yaml_text import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml
from wafergpt.errors import ConfigError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (LAUGHS, "more than 20000 values, aliases unfolded"),
        ("a: &a [*a]", "an alias stands inside its own anchor"),
        ("a: " + "[" * 100_000, "levels deep"),
        ("".join(" " * i + "a:\n" for i in range(MAX_DEPTH + 5)) + " " * 60 + "x", "levels deep"),
        ("- " * 5_000 + "x", "levels deep"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a: !!python/object/apply:os.system ['touch marker']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "'<<' merges are not read"),
        ("1: 2", "the key '1' is not text"),
        ("? [a]\n: b", "a key is not text"),
        ("- a\n- b", "does not hold a mapping"),
        ("", "is empty"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: [", "expected the node content"),
        ("a: " + "9" * 5000, "integer string conversion"),
        ("x: " + "y" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_hostile_text_is_refused_in_one_line(
    text: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text.encode(), "zoo.yaml")
    message = str(caught.value)
    assert rule in message and message.startswith("zoo.yaml: ") and "\n" not in message and len(message) < 400
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not UTF-8: byte 3"):
        parse_yaml(b"a: \xff", "zoo.yaml")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_yaml(tmp_path / "pipe.yaml")


def test_an_anchor_and_its_aliases_are_read(tmp_path: Path) -> None:
    """The current release names its validation loader once and uses it three times."""
    path = tmp_path / "zoo.yaml"
    path.write_text("a: &loader {batch_size: 120}\nb: *loader\nc: [*loader, *loader]\n")
    assert read_yaml(path)["c"] == [{"batch_size": 120}] * 2
