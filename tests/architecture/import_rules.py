"""Who may import whom: the one table, from layer 0 upwards. Decision 0003 says where and why it is as it is.

The keys are components: dotted names below `wafergpt`; a module belongs to the longest key that is a
prefix of its name. Every component may also import itself and the whole of `EVERYWHERE`.
"""

from __future__ import annotations

from dataclasses import dataclass

EVERYWHERE = ("errors", "config", "units")  # layer 0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`may_import`: components of ours, with all below them. `third_party`: top-level modules of others."""

    layer: int
    may_import: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()
    torch_free: bool = False  # must import with torch blocked


def _free(layer: int, *may_import: str, third_party: tuple[str, ...] = ()) -> Rule:
    return Rule(layer=layer, may_import=may_import, third_party=third_party, torch_free=True)


def _torch(layer: int, *may_import: str, third_party: tuple[str, ...] = ()) -> Rule:
    return Rule(layer=layer, may_import=may_import, third_party=("torch", "numpy", *third_party))


_MODEL_SHAPE = ("model.config", "model.family", "model.mup")

RULES: dict[str, Rule] = {
    "errors": _free(0),
    "units": _free(0),
    "config": _free(0, third_party=("yaml",)),
    "kernels": _free(1, third_party=("numpy",)),
    "assets": _free(1, third_party=("numpy", "pyarrow", "rich")),
    "tokenizer": _free(1, "assets", third_party=("numpy", "tokenizers")),
    "wafer": _free(1, "kernels", third_party=("numpy",)),
    "wafer.plots": _free(1, "wafer", third_party=("numpy", "matplotlib")),
    "model.config": _free(2),
    "model.family": _free(2, "model.config"),
    "model.mup": _free(2, "model.config"),
    "ops": _torch(2, "kernels"),
    "tasks": _free(2, "tokenizer", third_party=("numpy", "sacrebleu")),
    "recipes": _free(3, *_MODEL_SHAPE),
    "hdf5": _free(1, third_party=("numpy", "h5py")),
    "data.hdf5": _free(3, "data", "hdf5", "tokenizer", third_party=("numpy", "h5py")),
    "data": _free(3, "tokenizer", "assets", third_party=("numpy", "pyarrow", "zstandard", "rich")),
    "checkpoints": _free(3, "model.config", "model.mup", "tokenizer", third_party=("numpy",)),
    "checkpoints.huggingface": _free(
        3, "checkpoints", "model.config", "model.mup", "tokenizer", third_party=("numpy", "huggingface_hub")
    ),
    "checkpoints.modelzoo": _free(
        3,
        "checkpoints",
        "hdf5",
        "model.config",
        "model.mup",
        "tokenizer",
        third_party=("numpy", "h5py", "yaml"),
    ),
    "checkpoints.gguf": _free(
        3, "checkpoints", "model.config", "model.mup", "tokenizer", third_party=("numpy", "gguf")
    ),
    "model": _torch(4, *_MODEL_SHAPE, "ops", "checkpoints"),
    "training": _torch(5, "model", "ops", "data", "checkpoints", third_party=("rich",)),
    "training.config": _free(5, *_MODEL_SHAPE),
    "training.plots": _free(5, "training.metrics", "checkpoints", third_party=("numpy", "matplotlib")),
    "training.tensorboard": _torch(5, third_party=("tensorboard",)),
    "backends.backend": _free(5, "model.config", third_party=("numpy",)),
    "backends.pages": _free(5, "backends.backend"),
    "backends.packed_blocks": _free(5),
    "backends.packed_model": _free(
        5, "backends.packed_blocks", "kernels", "checkpoints", "model.config", third_party=("numpy",)
    ),
    "backends.native_cpu": _free(
        5,
        *("backends.backend", "backends.packed_blocks", "backends.packed_model"),
        *("kernels", "checkpoints", "model.config", "model.mup"),
        third_party=("numpy",),
    ),
    "backends.torch_eager": _torch(
        5, "backends.backend", "backends.pages", "kernels", "checkpoints", "model", "ops"
    ),
    "backends.torch_compiled": _torch(
        5, "backends.backend", "backends.pages", "kernels", "checkpoints", "model", "ops"
    ),
    "devices": _torch(5, "wafer", "ops"),
    "finetuning": _torch(6, "training", "tasks", "data", "model", "checkpoints", "tokenizer"),
    "finetuning.config": _free(6, "training.config", *_MODEL_SHAPE),
    "inference": _free(
        6, "backends.backend", "backends.pages", "kernels", "tokenizer", "tasks", third_party=("numpy",)
    ),
    "evaluation": _free(7, "tasks", "data", "inference", "tokenizer", third_party=("numpy", "rich")),
    "serving": _free(7, "tasks", "data", "inference", "tokenizer"),
    "runs.modelzoo": _free(
        8, "runs.pretrain", "recipes", *_MODEL_SHAPE, "training.config", "checkpoints.modelzoo"
    ),
    "runs": _free(8, "recipes", *_MODEL_SHAPE, "training.config", "finetuning.config"),
    "api": _torch(9, ""),  # "": everything below
    "loading": _torch(9, ""),
    "pipelines": _torch(9, ""),
    "conversion": _torch(9, "", third_party=("numpy",)),
    "engines": _torch(9, "", third_party=("numpy", "transformers", "xllamacpp")),
    "quickstart": _torch(9, "", third_party=("rich",)),
    "quickstart_report": _torch(9, ""),
    "base_model": _torch(9, ""),
    "quickstart_wafer": _torch(9, "", third_party=("rich",)),
    "cli": _free(10, "api", "base_model", "conversion", "quickstart", "runs", third_party=("typer", "rich")),
    "cli.assets": _free(10, "assets", third_party=("typer", "rich")),
    "cli.prepare": _free(10, "api", "data", third_party=("typer", "rich")),
    "cli.wafer": _free(10, "wafer", "model.family", third_party=("typer",)),
    "cli.doctor": _free(10, "kernels", "assets", third_party=("typer", "torch")),
    "": Rule(layer=11, may_import=("",)),  # the top __init__ names the public API
}

# Imports of this package inside functions: where --help, or `import wafergpt` without torch, must stay cheap.
MAY_DEFER = ("", "cli", "api", "loading", "quickstart")


def component_of(module: str) -> str | None:
    """The key of `RULES` that `module` (dotted, below `wafergpt`, "" for the package itself) belongs to."""
    if module == "":
        return ""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in RULES:
            return name
    return None


def is_within(module: str, component: str) -> bool:
    """Whether the dotted `module` is `component` or lies below it; everything lies within ""."""
    return component == "" or module == component or module.startswith(component + ".")
