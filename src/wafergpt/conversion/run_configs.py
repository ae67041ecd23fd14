"""A Model Zoo YAML as our run configs, one file per phase of the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wafergpt.checkpoints.files import write_atomic
from wafergpt.config import dump, require
from wafergpt.errors import ConfigError
from wafergpt.runs.modelzoo import run_config


def convert_yaml(
    source: Path, target: Path, data: Path | None, tell: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write what `wafergpt train --config` takes; several phases go to `TARGET-PHASE.yaml` each.

    `data` is the prepared folder the runs shall use. Raises ConfigError, StorageError; what
    `runs.modelzoo.run_config` raises.
    """
    suffixes = (".yaml", ".yml")
    require(target.suffix in suffixes, f"'{target}' does not end in .yaml, as run configs do")
    if data is None:
        raise ConfigError("run configs name their data: add --data, the folder that 'wafergpt prepare' wrote")
    configs, notes = run_config(source, data)
    for note in notes:
        tell(note)
    written = []
    for name, config in configs:
        path = target if len(configs) == 1 else target.with_name(f"{target.stem}-{name}{target.suffix}")
        require(not path.exists(), f"'{path}' exists already; choose another name or remove it")
        write_atomic(path, dump(config).encode())
        tell(f"wrote {path}")
        written.append(path)
    return written
