"""A Model Zoo run configuration, of either generation, as plain facts: model, optimiser, schedule, loop.

The `trainer:` style is that of release 2.3 and later, the sections `train_input, model, optimizer, runconfig`
that of release 1.x to 2.2. `runs.modelzoo` makes a training configuration of the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafergpt.checkpoints.modelzoo.model_section import ZooModel, read_model
from wafergpt.checkpoints.modelzoo.run_sections import (
    RUNCONFIG_NO_EFFECT,
    ZooInput,
    ZooOptimizer,
    check_callbacks,
    ignore_precision_keys,
    note_precision_level,
    read_clip_norm,
    read_eval_batch,
    read_input,
    read_kernel_lr_scale,
    read_optimizer,
    read_precision,
    single_entry,
)
from wafergpt.checkpoints.modelzoo.schedule_section import ZooSchedule, read_pieces
from wafergpt.checkpoints.modelzoo.section import Section
from wafergpt.checkpoints.modelzoo.yaml_text import read_yaml
from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig


@dataclass(frozen=True, kw_only=True)
class ZooLoop:
    """Steps and batches between events; None where the file says nothing."""

    max_steps: int
    eval_every: int | None
    eval_batches: int | None
    eval_batch_size: int | None
    save_every: int | None
    log_every: int | None
    seed: int | None
    n_systems: int | None


@dataclass(frozen=True, kw_only=True)
class ZooRun:
    """One run of a file. `half_precision`: bfloat16 with float32 masters, else float32."""

    model: GPTConfig
    dropout: float
    half_precision: bool
    optimizer: ZooOptimizer
    schedule: ZooSchedule
    train_input: ZooInput
    loop: ZooLoop
    notes: tuple[str, ...]


def is_zoo_tree(tree: Any) -> bool:
    """Whether plain data looks like a Model Zoo configuration, of either generation."""
    if not isinstance(tree, dict):
        return False
    return "trainer" in tree or ("model" in tree and ("runconfig" in tree or "train_input" in tree))


def read_runs(path: Path) -> tuple[ZooRun, ...]:
    """Every run of a YAML file, most often one. Raises ConfigError naming file and key."""
    tree = read_yaml(Path(path))
    try:
        return tuple(_read_tree(tree))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_model_config(path: Path) -> tuple[GPTConfig, tuple[str, ...]]:
    """Only the model of a YAML file (which may hold nothing else), and what was assumed.

    Raises ConfigError naming file and key, also when the file holds several models.
    """
    tree = read_yaml(Path(path))
    notes: list[str] = []
    try:
        if "trainer" in tree:
            bodies = _trainers(tree)
            require(len(bodies) == 1, f"holds {len(bodies)} models; one is needed")
            section = Section(bodies[0], "trainer", notes).section("init").section("model")
            kernel_lr_scale = None
        else:
            root = Section(tree, "", notes)
            section = root.section("model")
            kernel_lr_scale = read_kernel_lr_scale(root.section("optimizer", {}))
        ignore_precision_keys(section)
        model = read_model(section, kernel_lr_scale)
        section.finish()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return model.config, tuple(notes)


def _read_tree(tree: dict[str, Any]) -> list[ZooRun]:
    if "trainer" in tree:
        extra = sorted(set(tree) - {"trainer"})
        require(not extra, f"unknown key '{extra[0] if extra else ''}' beside 'trainer'")
        return [_read_trainer(Section(trainer, "trainer", [])) for trainer in _trainers(tree)]
    require(
        is_zoo_tree(tree),
        "is no Model Zoo configuration: it has neither 'trainer' nor 'model' with 'runconfig'",
    )
    return [_read_old(Section(tree, "", []))]


def _trainers(tree: dict[str, Any]) -> list[Any]:
    """The bodies of `trainer`, which may be a list of instances, each under its own `trainer` key."""
    body = tree["trainer"]
    if not isinstance(body, list):
        return [body]
    require(len(body) > 0, "trainer: the list is empty")
    bodies = [item.get("trainer") if isinstance(item, dict) and len(item) == 1 else None for item in body]
    require(None not in bodies, "trainer: a list must hold mappings with the one key 'trainer'")
    return bodies


# -- release 2.3 and later


def _read_trainer(root: Section) -> ZooRun:
    init = root.section("init")
    root.ignore(("validate", "validate_all"))  # evaluation of finished models
    fit = root.section("fit")
    init.ignore(("model_dir", "logging_dir", "loggers", "artifact_dir"))
    init.only("sparsity", None)
    model_section = init.section("model")
    model = read_model(model_section)
    model_section.finish()
    precision = init.section("precision", {})
    half_precision = read_precision(precision, "enabled", default=True)
    clip_norm = read_clip_norm(precision)
    check_callbacks(init)
    name, body = single_entry(init.take("optimizer"), "trainer.init.optimizer")
    require(name == "AdamW", f"trainer.init.optimizer: {name!r} is not supported; it must be AdamW")
    optimizer_section = Section(body, "trainer.init.optimizer.AdamW", root.notes)
    optimizer = read_optimizer(optimizer_section, clip_norm)
    learning_rate = optimizer_section.take("learning_rate", None)
    optimizer_section.finish()
    if learning_rate is None:
        learning_rate = init.take("schedulers")
    else:
        init.only("schedulers", None, [])
    schedule = read_pieces(learning_rate, "trainer.init.schedulers", root.notes)
    train_section = fit.section("train_dataloader")
    train_input = read_input(train_section, model, before_1_9=False)
    eval_batch_size = read_eval_batch(fit.take("val_dataloader", None), "trainer.fit.val_dataloader", root)
    fit.only("ckpt_path", None)
    loop = _read_trainer_loop(init, eval_batch_size)
    for section in (precision, fit, init, root):
        section.finish()
    return _run(model, half_precision, optimizer, schedule, train_input, loop, root)


def _read_trainer_loop(init: Section, eval_batch_size: int | None) -> ZooLoop:
    loop, checkpoint = init.section("loop"), init.section("checkpoint", {})
    logging = init.section("logging", {})
    backend = init.section("backend", {})
    n_systems = _cluster_systems(backend)
    backend.ignore(
        (
            "backend_type",
            "cluster_config",
            "compile_dir",
            "compile_only",
            "validate_only",
            "enable_distributed",
        )
    )
    backend.ignore(("dist_addr", "dist_backend", "init_method", "main_process_id", "sync_batchnorm"))
    logging.ignore(("wsc_log_level", "log_level", "log_opt_loss"))
    checkpoint.ignore(("checkpoint_name", "save_initial_checkpoint", "autoload_last_checkpoint"))
    checkpoint.ignore(("disable_strict_checkpoint_loading", "checkpoint_root", "always_save"))
    loop.only("num_epochs", None)
    loop.only("num_steps", None)
    loop.only("steps_per_epoch", None)
    loop.only("grad_accum_steps", 1, None)
    eval_every = loop.take("eval_frequency", None)
    if isinstance(eval_every, float) and not eval_every.is_integer():
        raise ConfigError(f"{loop.path('eval_frequency')} = {eval_every!r}: write the number of steps")
    read = ZooLoop(
        max_steps=loop.integer("max_steps", minimum=1),
        eval_every=loop.integer("eval_frequency") if loop.is_set("eval_frequency") else None,
        eval_batches=loop.integer("eval_steps", minimum=1) if loop.is_set("eval_steps") else None,
        eval_batch_size=eval_batch_size,
        save_every=checkpoint.integer("steps") if checkpoint.is_set("steps") else None,
        log_every=logging.integer("log_steps") if logging.is_set("log_steps") else None,
        seed=init.integer("seed") if init.is_set("seed") else None,
        n_systems=n_systems,
    )
    for section in (loop, checkpoint, logging, backend):
        section.finish()
    return read


def _cluster_systems(backend: Section) -> int | None:
    cluster = backend.take("cluster_config", None)
    if not isinstance(cluster, dict) or cluster.get("num_csx") is None:
        return None
    return Section(cluster, backend.path("cluster_config"), backend.notes).integer("num_csx", minimum=1)


# -- release 1.x to 2.2


def _read_old(root: Section) -> ZooRun:
    optimizer_section = root.section("optimizer")
    kernel_lr_scale = read_kernel_lr_scale(optimizer_section)
    model_section = root.section("model")
    half_precision = read_precision(model_section, "mixed_precision", default=False)
    model = read_model(model_section, kernel_lr_scale)
    model_section.finish()
    clip_norm = read_clip_norm(optimizer_section)
    optimizer_section.only("optimizer_type", "AdamW")
    optimizer = read_optimizer(optimizer_section, clip_norm)
    schedule = read_pieces(optimizer_section.take("learning_rate"), "optimizer.learning_rate", root.notes)
    optimizer_section.finish()
    runconfig = root.section("runconfig")
    runconfig.ignore(RUNCONFIG_NO_EFFECT)
    runconfig.only("mode", "train", "train_and_eval")
    for key in ("num_epochs", "num_steps", "steps_per_epoch", "checkpoint_path"):
        runconfig.only(key, None)
    note_precision_level(runconfig)
    before_1_9 = "use_cs_grad_accum" not in runconfig and "execution_strategy" in runconfig
    runconfig.ignore(("use_cs_grad_accum",))
    train_input = read_input(root.section("train_input"), model, before_1_9=before_1_9)
    loop = ZooLoop(
        max_steps=runconfig.integer("max_steps", minimum=1),
        eval_every=runconfig.integer("eval_frequency") if runconfig.is_set("eval_frequency") else None,
        eval_batches=runconfig.integer("eval_steps", minimum=1) if runconfig.is_set("eval_steps") else None,
        eval_batch_size=read_eval_batch(root.take("eval_input", None), "eval_input", root),
        save_every=runconfig.integer("checkpoint_steps") if runconfig.is_set("checkpoint_steps") else None,
        log_every=runconfig.integer("log_steps") if runconfig.is_set("log_steps") else None,
        seed=runconfig.integer("seed") if runconfig.is_set("seed") else None,
        n_systems=runconfig.integer("num_csx", minimum=1) if runconfig.is_set("num_csx") else None,
    )
    root.only("sparsity", None)
    for section in (runconfig, root):
        section.finish()
    return _run(model, half_precision, optimizer, schedule, train_input, loop, root)


def _run(
    model: ZooModel,
    half_precision: bool,
    optimizer: ZooOptimizer,
    schedule: ZooSchedule,
    train_input: ZooInput,
    loop: ZooLoop,
    root: Section,
) -> ZooRun:
    seq_len = train_input.seq_len or model.config.max_seq_len
    if model.loss_scaling == "batch_size":
        # sum / batch * weight is the mean over tokens, which is trained with here, for one weight only.
        require(
            abs(model.loss_weight * seq_len - 1) < 1e-6,
            f"loss_weight = {model.loss_weight!r} with loss_scaling 'batch_size' is not supported; it must be"
            f" 1/{seq_len}, the mean over the tokens of a sequence",
        )
    elif model.loss_weight != 1.0:
        root.note("loss_weight has no effect with loss_scaling 'num_tokens', in the Model Zoo and here")
    return ZooRun(
        model=model.config,
        dropout=model.dropout,
        half_precision=half_precision,
        optimizer=optimizer,
        schedule=schedule,
        train_input=train_input,
        loop=loop,
        notes=tuple(root.notes),
    )
