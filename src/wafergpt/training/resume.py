"""Which parts of a configuration may change when a run goes on, and which would make it another run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from wafergpt.config import to_dict
from wafergpt.errors import ConfigError
from wafergpt.training.config import TrainConfig


class Change(Enum):
    """What changing a key does to a run that is resumed."""

    FREE = "free"  # no weight depends on it
    INEXACT = "inexact"  # the same mathematics, rounded differently: reported, and `bit_exact` ends
    REFUSED = "refused"  # another run


# Every other key is refused.
_CLASSES = {
    "eval_every": Change.FREE,
    "eval_tokens": Change.FREE,
    "sample_every": Change.FREE,
    "save_every": Change.FREE,
    "keep": Change.FREE,
    "log_every": Change.FREE,
    "schedule.stop_step": Change.FREE,  # the curve stays: the run goes a shorter or longer way along it
    "data.path": Change.FREE,  # the data's own fingerprint is compared instead
    "base": Change.FREE,  # the weights' own fingerprint is compared, with the data's
    "examples.validation": Change.FREE,
    "patience": Change.FREE,
    "micro_batch_size": Change.INEXACT,
    "device": Change.INEXACT,
}

# Keys that a config stored by an earlier version lacks, with what that version did.
_ADDED_KEYS = {"schedule.first_step": 0, "examples.new_tokens": 0}


def change_class(key: str) -> Change:
    """The class of a dotted config key such as `optim.peak_lr`."""
    return _CLASSES.get(key, Change.REFUSED)


@dataclass(frozen=True, kw_only=True)
class ConfigChanges:
    """Keys that differ from the stored config and may, each as `key: old -> new`."""

    free: tuple[str, ...]
    inexact: tuple[str, ...]


def compare(stored: dict[str, Any], config: TrainConfig) -> ConfigChanges:
    """Class every difference between a stored config tree and `config`.

    Raises ConfigError naming the keys whose change is refused.
    """
    now = _leaves(to_dict(config))
    before = {key: value for key, value in _ADDED_KEYS.items() if key in now} | _leaves(stored)
    found: dict[Change, list[str]] = {change: [] for change in Change}
    for key in [*before, *(key for key in now if key not in before)]:
        if before.get(key) != now.get(key):
            found[change_class(key)].append(f"{key}: {before.get(key)} -> {now.get(key)}")
    refused = found[Change.REFUSED]
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise ConfigError(
            f"cannot resume with another {', '.join(refused[:3])}{more}: undo the change, or start a new run"
            " with another --out"
        )
    return ConfigChanges(free=tuple(found[Change.FREE]), inexact=tuple(found[Change.INEXACT]))


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}, lists as values."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            leaves.update(_leaves(value, f"{dotted}."))
        else:
            leaves[dotted] = value
    return leaves
