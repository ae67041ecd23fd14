"""`wafergpt train`: pre-train a model into a run folder, or go on with the run found there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wafergpt.errors import ConfigError


def train(
    run: Annotated[
        str | None,
        typer.Argument(
            help="base; a published size (111M, 1.3B-muP, ...); another (4M, 8M-muP): its recipe is derived."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that `wafergpt prepare` wrote; of base: where its mix goes, OUT-data."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = ...,  # type: ignore[assignment]
    config: Annotated[
        Path | None, typer.Option(help="YAML file of the whole config, instead of RUN.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a config value; may be given several times."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; RUN may be left out then.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard files to --out/tensorboard, too.")
    ] = False,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue every `sample_every` steps, to watch it learn.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Pre-train RUN on --data into --out.

    On several processes: torchrun --nproc-per-node N --no-python wafergpt train ...
    """
    from wafergpt import api, base_model
    from wafergpt.config import dump

    resolved = _config(run, data, out, config, set_ or (), resume)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if is_first:
        print(dump(resolved), end="", flush=True)
    if dry_run:
        return
    sampler = None
    if resolved.sample_every:
        sampler = api.make_sampler(
            resolved.data.path, prompt or [""], temperature=0.8, max_new_tokens=64, seed=0
        )
    result = api.train(resolved, out, resume=resume, sampler=sampler, tensorboard=tensorboard)
    if not is_first:
        return
    if result.held_out is not None:
        print(f"held out: {result.held_out}")
    if base_model.is_mix(resolved):
        print(f"card: {base_model.write_card(out, resolved)}")
    print(f'next: wafergpt generate --model {out} "..."')


def _config(
    run: str | None, data: Path | None, out: Path, config: Path | None, overrides: Sequence[str], resume: bool
) -> Any:
    """A `TrainConfig`: that of the run to resume, the base's plan for this machine, or by name or file."""
    from wafergpt import api, base_model
    from wafergpt.config import override

    stored = out / "config.yaml"
    is_base = run == "base" and config is None
    if resume and config is None and (is_base or run is None):
        if not stored.is_file():
            raise ConfigError(f"'{out}' holds no run to resume; to start one, name it or give a config file")
        return api.train_config(
            None, data=data if run is None else None, config_file=stored, overrides=overrides
        )
    if is_base:
        plan = base_model.plan(base_model.configured(), data or base_model.data_of(out), print)
        return override(plan, overrides)
    return api.train_config(run, data=data, config_file=config, overrides=overrides)
