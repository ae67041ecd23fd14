"""The package from Python: load a trained model, generate text, train. Picks the backend, wires the parts.

What needs torch is imported inside the functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wafergpt.config import load as load_config
from wafergpt.config import override, require
from wafergpt.data.config import PrepareConfig
from wafergpt.data.shards import Manifest
from wafergpt.errors import ConfigError
from wafergpt.evaluation.report import EvaluationReport
from wafergpt.inference import text
from wafergpt.inference.engine import Engine
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.text import Generation
from wafergpt.loading import LoadedModel, load, sampling_of
from wafergpt.model.config import FlopsConvention
from wafergpt.pipelines import Pipeline, calibrate, pipeline
from wafergpt.recipes.budget import TrainingRate
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.recipes.scaling_law import Status
from wafergpt.runs import pretrain
from wafergpt.runs.finetune import DataShape, Plan
from wafergpt.runs.finetune import finetune as finetune_run
from wafergpt.tasks.task import Record, Task
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.units import format_count, format_flops

if TYPE_CHECKING:
    from wafergpt.data.prepare import Prepared, Progress
    from wafergpt.evaluation.tasks import TaskScores
    from wafergpt.finetuning.config import FineTuneConfig
    from wafergpt.finetuning.material import Material
    from wafergpt.training.fit import FitResult

__all__ = [
    "LoadedModel",
    "Pipeline",
    "Plan",
    "SamplingConfig",
    "TrainConfig",
    "evaluate",
    "finetune",
    "generate",
    "load",
    "pipeline",
    "train",
]

Sampler = Callable[[Any, int], list[str]]  # (the GPT in training, the step) -> texts


def generate(
    model: LoadedModel | Path | str, prompt: str, sampling: SamplingConfig | None = None, **options: Any
) -> Generation:
    """Continue `prompt` with a loaded model or what `load` takes.

    Give a `SamplingConfig`, or its fields as options: temperature, top_k, top_p, seed, stop,
    max_new_tokens, ... Raises ConfigError for an unknown option or a prompt that leaves no room in the
    context window; what `load` raises for a folder.
    """
    sampling = sampling_of(sampling, options)
    loaded = model if isinstance(model, LoadedModel) else load(model)
    return loaded.generate(prompt, sampling)


def evaluate(
    model: LoadedModel | Path | str,
    data: Sequence[Path | str],
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    baselines: bool = False,
) -> EvaluationReport:
    """Measure a model on held-out text: nats/token, perplexity and bits/byte; its row is the first.

    `data` is one prepared folder (its held-out part) or text files. `seq_len` (the model's) and `stride`
    (half of it) set the windows; with `baselines` gzip, xz and n-gram models follow. Raises DataError,
    ConfigError, NonFiniteError; what `load` raises for a folder.
    """
    from wafergpt.evaluation.held_out import HeldOut, evaluate_text
    from wafergpt.evaluation.scoring import EngineScorer

    loaded = model if isinstance(model, LoadedModel) else load(model)
    held_out = HeldOut.open([Path(path) for path in data], loaded.tokenizer)
    return evaluate_text(
        EngineScorer(loaded.engine),
        loaded.tokenizer,
        held_out,
        name=f"this model ({format_count(loaded.config.n_params)} parameters)",
        seq_len=seq_len,
        stride=stride,
        with_baselines=baselines,
    )


def measure_training_rate(recipe: Recipe, duration_s: float = 4.0) -> TrainingRate:
    """How fast this machine trains `recipe`'s model: real optimiser steps on random tokens, bfloat16.

    Timed for about `duration_s` after a first step of warm-up.
    """
    from wafergpt.training.loop import measure_tokens_per_s

    tokens_per_s = measure_tokens_per_s(pretrain.rate_probe(recipe), duration_s)
    flops_per_token = recipe.model.flops_per_token(FlopsConvention.BENCHMARK, recipe.seq_len)
    size = format_count(recipe.model.n_params)
    return TrainingRate(
        flops_per_s=tokens_per_s * flops_per_token,
        status=Status.MEASURED,
        source=f"{tokens_per_s:,.0f} tokens/s with {size} parameters in bf16, "
        f"{format_flops(tokens_per_s * flops_per_token, per_second=True)}",
    )


def train_config(
    run: str | None,
    *,
    data: Path | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> TrainConfig:
    """The complete config of a run, from a name (`runs.pretrain.named`) or a YAML file, not both.

    `data` is the prepared folder; a file may hold it as `data.path`. `overrides` are `dotted.key=value`.
    Raises ConfigError; DataError when a named run's folder is missing or damaged.
    """
    require((run is None) != (config_file is None), "give either the name of a run or a config file")
    if config_file is not None:
        config = load_config(TrainConfig, config_file)
        return override(config, [*([f"data.path={data}"] if data else []), *overrides])
    assert run is not None
    if data is None:
        raise ConfigError(f"'{run}' needs data: give the folder that 'wafergpt prepare' wrote")
    return override(pretrain.named(run, data, vocab_size=Manifest.load(data / "train").vocab_size), overrides)


def train(
    run: TrainConfig | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    sampler: Sampler | None = None,
    tensorboard: bool = False,
    show: bool = True,
) -> FitResult:
    """Pre-train in the run folder `out`: a config, or a name with `data` and `overrides` (`train_config`).

    With `resume`, go on where the run in `out` stopped. `show` draws a live line, `tensorboard` writes event
    files too. Raises what `training.fit.fit` raises.
    """
    from wafergpt.training.fit import FitOptions, fit

    if isinstance(run, str):
        run = train_config(run, data=None if data is None else Path(data), overrides=overrides)
    else:
        require(
            data is None and not overrides, "data and overrides go with the name of a run, not with a config"
        )
    options = FitOptions(tensorboard=tensorboard)
    if not show:
        options = replace(options, console=None)
    return fit(run, Path(out), resume=resume, sampler=sampler, options=options)


def make_sampler(
    data: Path | str, prompts: Sequence[str], sampling: SamplingConfig | None = None, **options: Any
) -> Sampler:
    """What `train` calls for samples: continues each prompt with the model in training.

    `data` holds the tokenizer. Raises ConfigError, DataError.
    """
    config, tokenizer = sampling_of(sampling, options), Tokenizer.load(data)

    def sample(model: Any, step: int) -> list[str]:
        from wafergpt.backends.torch_eager import TorchEager

        found = text.generate_all(Engine(TorchEager(model)), tokenizer, prompts, config)
        return [generation.prompt + generation.text for generation in found]

    return sample


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None) -> Prepared:
    """Text to verified token shards. Raises what `data.prepare.prepare` raises."""
    from wafergpt.data.prepare import prepare as run

    return run(config, on_progress)


def finetune_parts(
    plan: Plan | FineTuneConfig, overrides: Sequence[str] = ()
) -> tuple[FineTuneConfig, Material]:
    """The complete config of a fine-tuning run, and what it is made of.

    `plan` is what a user decides, or a config that is complete. Raises ConfigError, DataError,
    CheckpointError, what reading the base raises.
    """
    from wafergpt.conversion import formats
    from wafergpt.finetuning.material import gather
    from wafergpt.ops import dispatch

    base = formats.read(formats.locate(str(plan.base))).model
    if not isinstance(plan, Plan):
        plan = override(plan, overrides)
        return plan, gather(base, plan.data.path, plan.examples, plan.data.seq_len, plan.seed)
    window = min(plan.seq_len or base.config.max_seq_len, base.config.max_seq_len)
    material = gather(base, plan.data, plan.examples, window, plan.seed)
    rows = [row.n_positions for row in material.train.rows]
    if material.validation is not None:
        longest = max(*rows, *(row.n_positions for row in material.validation.rows))
    else:
        longest = max(rows)
    shape = DataShape(n_examples=len(rows), n_tokens=sum(rows), longest=longest)
    quick = Precision.BF16 if dispatch.bf16_supported() else Precision.FP32
    config = override(finetune_run(plan, material.base.config, shape, quick), overrides)
    changed = replace(
        plan, base=config.base, data=config.data.path, examples=config.examples, seed=config.seed
    )
    return (config, material) if changed == plan else finetune_parts(changed, overrides)


def finetune(
    plan: Plan | FineTuneConfig,
    out: Path | str,
    *,
    material: Material | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    show: bool = True,
) -> FitResult:
    """Teach a base a task in the run folder `out`, where `load` and `pipeline` find the best model.

    `material` is what `finetune_parts` gave with a complete `plan`. A classifier is calibrated at the end.
    Raises what `finetune_parts` and `training.fit.run` raise.
    """
    from wafergpt.finetuning.job import FineTuning
    from wafergpt.training.fit import FitOptions, run

    if material is None:
        plan, material = finetune_parts(plan)
    assert not isinstance(plan, Plan), "material belongs to a complete config"
    config, made_of = plan, material
    options = FitOptions(tensorboard=tensorboard, measure_peak=False)
    if not show:
        options = replace(options, console=None)
    result = run(config, lambda: FineTuning(config, Path(out), made_of), resume=resume, options=options)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if is_first and made_of.task.name == "classification" and made_of.validation is not None:
        for line in calibrate(Path(out), made_of.validation.records):
            if show:
                print(line)
    return result


def stored_finetune(out: Path) -> FineTuneConfig:
    """The config of the fine-tuning run in `out`. Raises ConfigError when there is none."""
    from wafergpt.finetuning.config import FineTuneConfig

    stored = out / "config.yaml"
    require(stored.is_file(), f"'{out}' holds no run to resume; to start one, give --task, --base and --data")
    return load_config(FineTuneConfig, stored)


def test_leaks(material: Material, test: Path, columns: Mapping[str, str]) -> list[str]:
    """A line when questions of `test` are among the training examples. Raises DataError."""
    from wafergpt.finetuning.material import leak_notice

    _, records = task_records(material.task, test, columns)
    return leak_notice(material.task, material.train.records, tuple(records), str(test))


def task_records(
    task: Task,
    data: Path | str,
    columns: Mapping[str, str] | None = None,
    with_answers: bool = True,
    split: str = "test",
) -> tuple[list[dict[str, Any]], list[Record]]:
    """(rows of a file or of a folder's `split`, the same by the task's fields). Raises DataError."""
    from wafergpt.data.records import read_records
    from wafergpt.tasks.columns import records_of

    rows = read_records(data, split)
    return rows, records_of(task, rows, str(data), told=columns, with_answers=with_answers)


def score(
    task: str,
    model: LoadedModel | Path | str,
    data: Path | str,
    *,
    split: str = "test",
    columns: Mapping[str, str] | None = None,
) -> TaskScores:
    """How good a fine-tuned model is on labelled `data`: a file, or a folder's `split`. See `pipeline`."""
    found = pipeline(task, model)
    return found.score(task_records(found.task, data, columns, split=split)[1])
