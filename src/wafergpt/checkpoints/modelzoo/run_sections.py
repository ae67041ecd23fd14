"""What both generations of a Model Zoo configuration say in the same words: optimiser, precision, data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from wafergpt.checkpoints.modelzoo.model_section import ZooModel
from wafergpt.checkpoints.modelzoo.section import Section
from wafergpt.config import require
from wafergpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ZooOptimizer:
    """AdamW as the file says. `clip_norm` is the largest global gradient norm."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float | None


@dataclass(frozen=True, kw_only=True)
class ZooInput:
    """The data loader's part: `batch_size` counts sequences of `seq_len` tokens."""

    batch_size: int
    seq_len: int | None
    micro_batch_size: int | None
    counts_one_system: bool  # releases before 1.9 without use_cs_grad_accum: the batch of one CS-2 system


# Cluster, compiler, logging and checkpoint housekeeping of `runconfig`: decide no weight here.
RUNCONFIG_NO_EFFECT = re.findall(
    r"\w+",
    """
    mgmt_address mgmt_namespace mount_dirs python_paths compile_dir credentials_path debug_args_path
    retrace_every_iteration init_method job_time_sec job_labels job_priority target_device wsc_log_level
    check_loss_values disable_strict_checkpoint_loading dist_addr dist_backend disable_version_check
    enable_distributed model_dir save_initial_checkpoint num_workers_per_csx validate_only logging
    sync_batchnorm compile_only transfer_processes num_wgt_servers num_act_servers execute_crd_memory_gi
    compile_crd_memory_gi op_profiler_config dump_activations log_input_summaries main_process_id
    max_checkpoints summary_dir lazy_initialization wrk_memory_gi act_memory_gi cmd_memory_gi wgt_memory_gi
    experimental ini debug_args legacy_event_dirs save_losses save_summary_steps use_appliance_data
    execution_strategy num_wafer_groups multireplica autoload_last_checkpoint load_checkpoint_states
    """,
)
# Callbacks that watch a run; every other one would change it.
_WATCHERS = (
    "ComputeNorm",
    "CheckLoss",
    "LogInputSummaries",
    "LogOptimizerParamGroup",
    "LogSparsity",
    "ModelEvalMetrics",
    "RateProfiler",
    "FlopUtilization",
    "DurationProfiler",
    "OpProfiler",
    "CountParams",
    "SavePerformanceData",
    "TelemetryLogger",
    "TensorBoardLogger",
)


def check_callbacks(init: Section) -> None:
    """Refuse every callback but those that watch. Raises ConfigError."""
    callbacks = init.take("callbacks", None) or []
    require(isinstance(callbacks, list), f"{init.path('callbacks')}: expected a list")
    for callback in callbacks:
        name, _ = single_entry(callback, init.path("callbacks"))
        require(name in _WATCHERS, f"{init.path('callbacks')}: '{name}' changes the run and is not supported")


def read_kernel_lr_scale(optimizer: Section) -> float | None:
    """What the kernels' learning rate is multiplied by before release 2.3; None without muP."""
    if not optimizer.is_set("adjust_learning_rate"):
        return None
    groups = optimizer.section("adjust_learning_rate")
    scale = groups.number("decoder_kernel")
    groups.finish()
    return scale


def read_precision(section: Section, switch: str, *, default: bool) -> bool:
    """Whether the run computes in 16 bits. `switch` is the key that turns mixed precision on."""
    note_precision_level(section)
    section.ignore(("log_loss_scale",))
    mixed = section.flag(switch, default)
    old_switch = section.take("use_bfloat16", None)
    kind = section.take("fp16_type", "bfloat16" if old_switch is not False else "float16")
    if not mixed:
        return False
    if kind == "cbfloat16":
        section.note(
            "fp16_type = cbfloat16 is Cerebras' own 16-bit format; the run here computes in bfloat16"
        )
    elif kind != "bfloat16":
        raise ConfigError(
            f"{section.path('fp16_type')} = {kind!r} is not supported (it needs loss scaling); use bfloat16"
        )
    section.ignore(("loss_scaling_factor", "initial_loss_scale", "steps_per_increase"))
    section.ignore(("min_loss_scale", "max_loss_scale"))  # for float16 and cbfloat16: bfloat16 needs none
    return True


def note_precision_level(section: Section) -> None:
    """Read `precision_opt_level`, which has no counterpart here."""
    if section.take("precision_opt_level", 0) not in (0, None):
        section.note(
            "precision_opt_level decides the rounding on a CS system; here products are bfloat16 with float32"
            " sums and attention's softmax is float32"
        )


def ignore_precision_keys(section: Section) -> None:
    """Pass over precision, where only the model is wanted."""
    section.ignore(("mixed_precision", "use_bfloat16", "fp16_type", "precision_opt_level"))


def read_clip_norm(section: Section) -> float | None:
    """The largest gradient norm; None: no clipping. Raises ConfigError for clipping by value."""
    section.only("max_gradient_value", None)
    return section.number("max_gradient_norm") if section.is_set("max_gradient_norm") else None


def read_optimizer(section: Section, clip_norm: float | None) -> ZooOptimizer:
    """AdamW's settings, under old or new names. Raises ConfigError."""
    section.ignore(("log_summaries", "loss_scaling_factor", "initial_loss_scale", "steps_per_increase"))
    section.ignore(("min_loss_scale", "max_loss_scale"))
    section.only("correct_bias", True)
    section.only("amsgrad", False)
    if "adjust_learning_rate" in section and section.where.startswith("trainer"):
        section.only("adjust_learning_rate", None)
    if "betas" in section:
        betas = section.take("betas")
        require(isinstance(betas, list) and len(betas) == 2, f"{section.path('betas')}: expected two numbers")
        pair = Section({"0": betas[0], "1": betas[1]}, section.path("betas"), section.notes)
        first, second = pair.number("0"), pair.number("1")
    else:
        first, second = section.number("beta1"), section.number("beta2")
    decay_key = "weight_decay_rate" if "weight_decay_rate" in section else "weight_decay"
    section.note(
        "AdamW's eps is added to the bias-corrected root here, to the uncorrected one on a CS system:"
        " different by a factor on eps early in training"
    )
    return ZooOptimizer(
        betas=(first, second),
        eps=section.number("eps", 1e-6),
        weight_decay=section.number(decay_key, 0.0),
        clip_norm=clip_norm,
    )


_INPUT_NO_EFFECT = re.findall(
    r"\w+",
    """
    num_workers prefetch_factor persistent_workers pin_memory drop_last repeat shuffle_buffer sort_files
    use_worker_cache shuffle_seed data_dir pad_id eos_id bos_token_id pad_last max_file_shards
    """,
)
_PROCESSORS = ("GptHDF5DataProcessor", "GptHDF5MapDataProcessor")


def read_input(section: Section, model: ZooModel, *, before_1_9: bool) -> ZooInput:
    """The training loader: batch and length; where its data lies is not followed. Raises ConfigError."""
    section.ignore(_INPUT_NO_EFFECT)
    section.only("data_processor", *_PROCESSORS)
    section.only("use_vsl", False)
    section.only("mixture", None)
    section.only("data_subset", None)
    section.only("num_samples", None)
    section.only("features_list", ["input_ids", "attention_mask", "labels"])
    section.only("vocab_size", model.config.vocab_size)
    section.note("the file's data folders are not read: the run trains on the prepared folder it is given")
    if not section.take("shuffle", False):
        section.note(
            "shuffle = false: the file relies on data shuffled before; here windows are always shuffled"
        )
    lengths = [key for key in ("max_sequence_length", "msl") if section.is_set(key)]
    micro = section.take("micro_batch_size", None)
    read = ZooInput(
        batch_size=section.integer("batch_size", minimum=1),
        seq_len=section.integer(lengths[0], minimum=1) if lengths else None,
        micro_batch_size=section.integer("micro_batch_size", minimum=1) if isinstance(micro, int) else None,
        counts_one_system=before_1_9,
    )
    section.finish()
    return read


def read_eval_batch(value: Any, where: str, root: Section) -> int | None:
    """Sequences per evaluation batch; None without an evaluation set. Raises ConfigError."""
    if value is None:
        return None
    bodies = value if isinstance(value, list) else [value]
    require(len(bodies) == 1, f"{where}: several evaluation sets are not supported")
    return Section(bodies[0], where, root.notes).integer("batch_size", minimum=1)


def single_entry(value: Any, where: str) -> tuple[str, Any]:
    """Name and body of a mapping with one key, or a bare name."""
    if isinstance(value, str):
        return value, {}
    require(isinstance(value, dict) and len(value) == 1, f"{where}: expected a mapping with one key")
    name, body = next(iter(value.items()))
    return str(name), {} if body is None else body
