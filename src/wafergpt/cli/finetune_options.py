"""The options of `wafergpt finetune`, and how their words are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from wafergpt.config import require

Task = Annotated[str | None, typer.Option(help="classification, translation, qa, chat or writing.")]
Base = Annotated[
    Path | None, typer.Option(help="Run, checkpoint or Hugging Face folder, hub name, .gguf or .mdl file.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Examples: .jsonl, .json, .csv, .tsv, .parquet, .arrow, a folder of splits, or asset:NAME."
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder to write; the best model is used from there.")]
Validation = Annotated[
    Path | None,
    typer.Option(help="Examples to judge by.", show_default="a split of --data, or a tenth of it"),
]
Test = Annotated[
    Path | None, typer.Option(help="Examples to score the model on in the end; leaks into it are looked for.")
]
Columns = Annotated[
    list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="Where a field of the task stands in --data.")
]
Setting = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the task: method=likelihood, ...")
]
Epochs = Annotated[float, typer.Option(help="Times over the examples.")]
Batch = Annotated[int, typer.Option(help="Examples of one step, about.")]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate.", show_default="5e-4; muP 1e-3; LoRA 2e-3")
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest example that is used.", show_default="the base's window")
]
NewTokens = Annotated[
    int,
    typer.Option(help="Entries to add to the vocabulary, learned from what is to be written."),
]
LoRA = Annotated[
    int | None, typer.Option("--lora", metavar="RANK", help="Train low-rank adapters only, and merge them.")
]
Alpha = Annotated[float | None, typer.Option(help="Of the adapters.", show_default="2 x RANK")]
LoRATarget = Annotated[
    list[str] | None,
    typer.Option(help="attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj, wte.", show_default="all but wte"),
]
Balanced = Annotated[bool, typer.Option("--balanced", help="Let labels weigh alike, however rare they are.")]
Precision = Annotated[
    str | None, typer.Option(help="bf16, fp32 or int8.", show_default="bf16 where the hardware has it")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Start from fresh weights of the base's shape, to compare.")
]
Seed = Annotated[int, typer.Option(help="Of the order, the part split off and fresh weights.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config value; may be given several times."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, as it was started.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard files to --out/tensorboard, too.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the config and what the data hold, and stop.")]


def lora_of(rank: int | None, alpha: float | None, targets: list[str] | None) -> dict[str, Any] | None:
    """`LoRAConfig` as plain data. Raises ConfigError for details without a rank."""
    if rank is None:
        require(alpha is None and not targets, "--alpha and --lora-target go with --lora RANK")
        return None
    found: dict[str, Any] = {"rank": rank, "alpha": 2.0 * rank if alpha is None else alpha}
    return {**found, "targets": targets} if targets else found


def settings_of(assignments: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE texts; a value is JSON (`true`, `["a", "b"]`), or else the text itself."""
    found: dict[str, Any] = {}
    for name, value in pairs_of("--setting", assignments):
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def pairs_of(option: str, assignments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of NAME=VALUE texts. Raises ConfigError."""
    for text in assignments:
        name, separator, value = text.partition("=")
        require(bool(separator and name and value), f"{option} {text}: expected NAME=VALUE")
        yield name.strip(), value


_UNTOLD: dict[str, Any] = {
    "base": None, "data": None, "epochs": 3.0, "batch_examples": 32, "peak_lr": None, "seq_len": None,
    "precision": None, "random_weights": False, "seed": 0, "class_weights": "equal", "lora": None,
    "examples": {"task": None, "settings": {}, "validation": None, "columns": {}, "new_tokens": 0},
}  # fmt: skip


def check_resume(told: dict[str, Any]) -> None:
    """Raise ConfigError when --resume comes with an option that the stored config decides."""
    require(
        told == _UNTOLD,
        "--resume goes on with the run as it was started; leave the other options out (--set changes what may"
        " change, e.g. --set base=DIR for a base that was moved)",
    )
