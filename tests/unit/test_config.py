"""Strict configuration: what is accepted, what is refused, and the one line that says why."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from wafergpt import config
from wafergpt.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class Optim:
    peak_lr: float = 6e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    enabled: bool = True


@dataclass(frozen=True, kw_only=True)
class Run:
    n_steps: int
    name: str = "run"
    colour: Colour = Colour.RED
    folder: Path | None = None
    clip: float | None = None
    optim: Optim = field(default_factory=Optim)
    sources: list[Path] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    extra: Any = None

    def __post_init__(self) -> None:
        config.require_finite("n_steps", self.n_steps, minimum=1)


FULL = Run(
    n_steps=3,
    name="größer",
    colour=Colour.GREEN,
    folder=Path("a/b"),
    clip=1.5,
    optim=Optim(peak_lr=1e-4, betas=(0.9, 0.999), enabled=False),
    sources=[Path("x.txt"), Path("y.txt")],
    limits={"a": 1},
    extra={"free": [1, None]},
)


@pytest.mark.parametrize("run", [Run(n_steps=1), FULL], ids=["defaults", "full"])
def test_a_tree_survives_the_round_trip(run: Run, tmp_path: Path) -> None:
    assert config.from_dict(Run, config.to_dict(run)) == run
    for name, text in (("run.yaml", config.dump(run)), ("run.json", json.dumps(config.to_dict(run)))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert config.load(Run, tmp_path / name) == run


def test_dump_keeps_the_declared_order() -> None:
    assert list(config.to_dict(FULL)) == list(Run.__dataclass_fields__)
    assert config.dump(FULL).startswith("n_steps: 3\nname: größer\ncolour: green\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"n_steps": 1, "n_step": 2}, "unknown config key 'n_step'; did you mean 'n_steps'?"),
        ({"n_steps": 1, "optim": {"peek_lr": 1}}, "'optim.peek_lr'; did you mean 'peak_lr'?"),
        ({"n_steps": 1, "zzz": 2}, "unknown config key 'zzz'"),
        ({}, "missing config key 'n_steps'"),
        ({"n_steps": 0}, "n_steps = 0 is out of range; allowed: 1 to inf"),
        ({"n_steps": "7"}, "n_steps: expected int, got '7'"),
        ({"n_steps": 1.5}, "n_steps: expected int, got 1.5"),
        ({"n_steps": True}, "n_steps: expected int, got True"),
        ({"n_steps": 1, "clip": "much"}, "clip: expected a number, got 'much'"),
        ({"n_steps": 1, "clip": False}, "clip: expected float, got False"),
        ({"n_steps": 1, "name": 3}, "name: expected str, got 3"),
        ({"n_steps": 1, "name": None}, "name: expected str, got None"),
        ({"n_steps": 1, "colour": "gren"}, "'gren' is not one of red, green; did you mean 'green'?"),
        ({"n_steps": 1, "optim": 3}, "optim: expected a mapping, got int"),
        ({"n_steps": 1, "optim": {"betas": 0.9}}, "optim.betas: expected a list, got 0.9"),
        ({"n_steps": 1, "optim": {"betas": [0.9, "x"]}}, "optim.betas[1]: expected a number, got 'x'"),
        ({"n_steps": 1, "optim": {"enabled": 1}}, "optim.enabled: expected bool, got 1"),
        ({"n_steps": 1, "limits": {"a": "b"}}, "limits.a: expected int, got 'b'"),
        ({"n_steps": 1, "limits": [1]}, "limits: expected a mapping, got [1]"),
        ([1], "Run: expected a mapping, got list"),
        (None, "Run: expected a mapping, got NoneType"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Run, data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_converted_only_without_loss() -> None:
    run = config.from_dict(Run, {"n_steps": 2.0, "clip": 1, "optim": {"peak_lr": "6e-3"}})
    assert (run.n_steps, run.clip, run.optim.peak_lr) == (2, 1.0, 6e-3)
    assert isinstance(run.n_steps, int) and isinstance(run.clip, float)


def test_overrides_reach_any_depth_and_leave_the_original() -> None:
    run = config.override(FULL, ["n_steps=9", "optim.peak_lr=6e-3", "colour=red", "clip=null", "name=a=b"])
    assert run.n_steps == 9 and run.optim.peak_lr == 6e-3 and run.colour is Colour.RED
    assert run.clip is None and run.name == "a=b" and run.optim.betas == FULL.optim.betas
    assert FULL.n_steps == 3
    assert config.override(FULL, ["optim.betas=[0.8, 0.9]", "optim={peak_lr: 1}"]).optim == Optim(peak_lr=1.0)
    assert config.override(FULL, []) == FULL


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("n_steps", "'n_steps' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("optim.peek_lr=1", "unknown config key 'optim.peek_lr'; did you mean 'peak_lr'?"),
        ("optm.peak_lr=1", "unknown config key 'optm'; did you mean 'optim'?"),
        ("name.x=1", "'name' holds a value, so 'name.x' does not exist"),
        ("n_steps=0", "n_steps = 0 is out of range"),
        ("n_steps=many", "n_steps: expected int, got 'many'"),
        ("name=[1", "cannot read the value of 'name=[1'"),
    ],
)
def test_a_bad_override_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.override(FULL, [assignment])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"n_steps: [", "cannot read config file"),
        (b"\xff\xfe\x00", "cannot read config file"),
        (b"", "expected a mapping, got NoneType"),
        (b"n_steps: 1\nnme: x\n", "unknown config key 'nme'; did you mean 'name'?"),
        (b"n_steps: 1\nname: a\nname: b\n", "the key 'name' stands twice"),
        (b"n_steps: !!python/object/apply:os.getcwd []", "cannot read config file"),
    ],
    ids=["absent", "syntax", "bytes", "empty", "unknown", "twice", "code"],
)
def test_a_bad_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(Run, path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1])
def test_numbers_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"share = .* is out of range; allowed: 0 to 1"):
        config.require_finite("share", value, minimum=0, maximum=1)
    config.require_finite("share", 1.0, minimum=0, maximum=1)
