"""What docs/reference must say, taken from the code: rows of config.md and cli.md that a test compares."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wafergpt.cli.main import VERBS, load_verb
from wafergpt.finetuning.config import ExamplesConfig, FineTuneConfig
from wafergpt.model.config import GPTConfig, LoRAConfig, MuPConfig
from wafergpt.training.config import DataConfig, OptimConfig, ScheduleConfig, TrainConfig

# Section of config.md -> the dataclass it describes.
CONFIGS: dict[str, type] = {
    "TrainConfig": TrainConfig,
    "model: GPTConfig": GPTConfig,
    "model.mup: MuPConfig": MuPConfig,
    "data: DataConfig": DataConfig,
    "optim: OptimConfig": OptimConfig,
    "schedule: ScheduleConfig": ScheduleConfig,
}
# The same for what a fine-tuning run has besides.
FINETUNE_CONFIGS: dict[str, type] = {
    "FineTuneConfig": FineTuneConfig,
    "examples: ExamplesConfig": ExamplesConfig,
    "lora: LoRAConfig": LoRAConfig,
}


def sections(page: Path) -> dict[str, str]:
    """Title -> text of every `##` section of a page, backticks of the title left out."""
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title.replace("`", "").strip(): text for title, text in zip(parts[::2], parts[1::2], strict=True)}


def table_rows(text: str) -> list[tuple[str, ...]]:
    """The body rows of every Markdown table in `text`, cells stripped of spaces and backticks."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")) for line in lines]
    rules = [i for i, row in enumerate(rows) if set("".join(row)) <= set("-: ")]
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]


def config_rows(cls: type) -> list[tuple[str, str, str]]:
    """(key, type, default) of every field of its own, not inherited, as config.md writes them."""
    hints = typing.get_type_hints(cls)
    inherited = {name for parent in cls.__mro__[1:] for name in getattr(parent, "__annotations__", {})}
    return [
        (field.name, _type_text(hints[field.name]), _default_text(_default_of(field)))
        for field in dataclasses.fields(cls)
        if field.name not in inherited
    ]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _type_text(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type_text(a) for a in arguments)
    if typing.get_origin(kind) is dict:
        return "mapping"
    if typing.get_origin(kind) is tuple:
        return f"list of {_type_text(arguments[0])}"
    if issubclass(kind, enum.Enum):
        return ", ".join(member.value for member in kind)
    return "section" if dataclasses.is_dataclass(kind) else str(kind.__name__).lower()


def _default_text(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ", ".join(item if isinstance(item, str) else f"{item:g}" for item in value)
    if value == {}:
        return "{}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def verb_rows() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """(words of the command, its (option or argument, default, help) rows) for every verb and sub-verb."""
    for name, verb in VERBS.items():
        command = load_verb(name)
        if not verb.subverbs:
            yield name, _parameter_rows(command)
        for subverb in verb.subverbs:
            yield f"{name} {subverb}", _parameter_rows(command.commands[subverb])


def _parameter_rows(command: Any) -> list[tuple[str, str, str]]:
    return [_parameter_row(p) for p in command.params if "--help" not in p.opts]


def _parameter_row(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = parameter.name.upper()
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
    shown = getattr(parameter, "show_default", None)
    default = parameter.default() if callable(parameter.default) else parameter.default
    if parameter.required:
        text = "required"
    elif isinstance(shown, str):
        text = shown
    elif default is None or default is False or default in ("", (), []):
        text = ""
    else:
        text = "on" if default is True else str(default)
    return name, text, parameter.help.replace("`", "").replace("|", "/")


def with_verb_tables(text: str) -> str:
    """The text of cli.md with the table of every verb written anew from the code, all else as it is."""
    for verb, rows in verb_rows():
        lines = [
            f"| {f'`{row[0]}`' if row[0].startswith('-') else row[0]} | {row[1]} | {row[2]} |" for row in rows
        ]
        table = "\n".join(["| option | default | meaning |", "|---|---|---|", *lines, "", ""]) if rows else ""
        section = re.compile(rf"(^## `{verb}`\n\n[^|]*?)(?:^\|.*?\n\n)?(?=^## )", re.MULTILINE | re.DOTALL)
        text = section.sub(lambda match, table=table: match[1] + table, text, count=1)
    return text


if __name__ == "__main__":  # write the tables of cli.md
    page = Path(__file__).resolve().parents[2] / "docs/reference/cli.md"
    page.write_text(with_verb_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
