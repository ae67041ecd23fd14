"""A Model Zoo configuration becomes complete training configurations (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wafergpt.checkpoints.modelzoo.config import ZooRun, read_runs
from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.recipes.cerebras_gpt import RECIPES, Phase, PublishedRecipe
from wafergpt.runs.pretrain import micro_batch_size
from wafergpt.training.config import (
    DataConfig,
    Decay,
    OptimConfig,
    Precision,
    ScheduleConfig,
    TrainConfig,
)

NEVER = 1_000_000_000  # steps between checkpoints where the file wants none but the last


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A run of the published table, and which of its phases."""

    recipe: PublishedRecipe
    phase: Phase
    number: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-phase{self.number}" if len(self.recipe.phases) > 1 else self.recipe.name


def run_config(
    path: Path, data: Path, *, n_systems: int | None = None
) -> tuple[list[tuple[str, TrainConfig]], tuple[str, ...]]:
    """(name, configuration) of every run in the YAML file `path` over the prepared folder `data`, and notes.

    A run of the published table gets its name (`111M`, `13B-phase2`, ...), any other the file's. In files of
    releases before 1.9 the batch counts one CS-2 system; `n_systems` says how many there were where the file
    and the table do not. Notes are one line each: what was assumed, dropped or corrected.

    Raises ConfigError naming file and key.
    """
    runs: list[tuple[str, TrainConfig]] = []
    notes: list[str] = []
    found = read_runs(path)
    for number, run in enumerate(found, start=1):
        known = _published(run)
        name = known.name if known else Path(path).stem + (f"-{number}" if len(found) > 1 else "")
        try:
            config, more = _train_config(run, known, Path(data), n_systems)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        runs.append((name, config))
        notes += [note for note in (*run.notes, *more) if note not in notes]
    return runs, tuple(notes)


def _published(run: ZooRun) -> _Known | None:
    """The published run with this model and exactly this schedule, whatever its batch."""
    for recipe in RECIPES.values():
        model = recipe.config
        if (model.n_params, model.n_heads, model.mup) != (
            run.model.n_params,
            run.model.n_heads,
            run.model.mup,
        ):
            continue
        for number, phase in enumerate(recipe.phases, start=1):
            steps = (run.schedule.warmup_steps, run.schedule.decay_steps)
            if steps == (phase.warmup_steps, phase.decay_steps):
                return _Known(recipe=recipe, phase=phase, number=number)
    return None


def _train_config(
    run: ZooRun, known: _Known | None, data: Path, n_systems: int | None
) -> tuple[TrainConfig, list[str]]:
    notes: list[str] = []
    require(
        run.dropout == 0,
        f"dropout of {run.dropout:g} is not supported: set dropout_rate and attention_dropout_rate to 0.0",
    )
    batch_size = _batch_size(run, known, n_systems, notes)
    seq_len = run.train_input.seq_len or run.model.max_seq_len
    micro = run.train_input.micro_batch_size
    require(
        micro is None or batch_size % micro == 0, f"micro_batch_size = {micro} does not divide {batch_size}"
    )
    eval_every, eval_tokens = _evaluation(run, seq_len)
    optimizer, loop = run.optimizer, run.loop
    if known is not None and run.schedule.cosine != (known.recipe.decay.value == "cosine"):
        kind = "cosine" if run.schedule.cosine else "linear"
        notes.append(
            f"the file's decay is {kind}, as kept here; the paper's table 1 says {known.recipe.decay.value}"
        )
    config = TrainConfig(
        model=run.model,
        data=DataConfig(path=data, seq_len=seq_len),
        optim=OptimConfig(
            peak_lr=run.schedule.peak_lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            clip_norm=optimizer.clip_norm,
        ),
        schedule=_schedule(run, known, notes),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size(batch_size, seq_len) if micro is None else micro,
        precision=Precision.BF16 if run.half_precision else Precision.FP32,
        seed=loop.seed or 0,
        eval_every=eval_every,
        eval_tokens=eval_tokens,
        save_every=loop.save_every or NEVER,
        log_every=loop.log_every or 1,
    )
    return config, notes


def _batch_size(run: ZooRun, known: _Known | None, n_systems: int | None, notes: list[str]) -> int:
    """Sequences per optimiser step over all systems."""
    written = run.train_input.batch_size
    if not run.train_input.counts_one_system:
        require(n_systems is None, "the file's batch_size is that of all systems; leave n_systems out")
        return written
    count = n_systems or run.loop.n_systems
    if count is None and known is not None and known.phase.batch_sequences % written == 0:
        count = known.phase.batch_sequences // written
    if count is None:
        raise ConfigError(
            f"batch_size = {written} counts one CS-2 system in releases before 1.9, and the file does not say"
            " how many there were: give n_systems"
        )
    notes.append(
        f"batch_size = {written} counts one CS-2 system in releases before 1.9; {count} system(s) make"
        f" {written * count} sequences a step"
    )
    return written * count


def _schedule(run: ZooRun, known: _Known | None, notes: list[str]) -> ScheduleConfig:
    schedule, max_steps = run.schedule, run.loop.max_steps
    n_curve = max_steps if schedule.decay_steps is None else schedule.warmup_steps + schedule.decay_steps
    require(
        max_steps <= n_curve,
        f"max_steps = {max_steps} goes beyond the schedulers' {n_curve} steps, which is not supported",
    )
    first_step = 0
    if known is not None and known.phase.first_step > 0 and max_steps == known.phase.last_step:
        first_step = known.phase.first_step
        before = known.recipe.phases[known.number - 2]
        notes.append(
            f"{known.name} goes on with the state of the phase before it, {before.n_steps:,} steps of"
            f" {before.batch_sequences}: first_step = {first_step:,} is not in the file; set start_from to it"
        )
    elif max_steps < n_curve:
        notes.append(f"max_steps = {max_steps:,} ends the run before its schedule of {n_curve:,} steps does")
    return ScheduleConfig(
        warmup_steps=schedule.warmup_steps,
        total_steps=n_curve,
        decay=Decay.COSINE if schedule.cosine else Decay.LINEAR,
        final_fraction=schedule.final_fraction,
        first_step=first_step,
        stop_step=max_steps if max_steps < n_curve else None,
    )


def _evaluation(run: ZooRun, seq_len: int) -> tuple[int, int]:
    """(steps between evaluations, tokens of one); the last evaluation always reads all held-out text."""
    loop = run.loop
    default = 65_536  # TrainConfig.eval_tokens
    if loop.eval_batches is None or loop.eval_batch_size is None:
        return loop.eval_every or 0, default
    return loop.eval_every or 0, loop.eval_batches * loop.eval_batch_size * seq_len
