"""One evaluation as data: a row per model or baseline, written as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from wafergpt.config import to_dict
from wafergpt.evaluation.perplexity import COUNTING, HeldOutLoss
from wafergpt.units import format_duration


class Kind(StrEnum):
    """What a row measures."""

    MODEL = "model"
    NGRAM = "n-gram"
    COMPRESSOR = "compressor"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; compressors predict no tokens, so they have no nats per token."""

    name: str
    kind: Kind
    bits_per_byte: float
    duration_s: float
    nats_per_token: float | None = None
    details: str = ""

    @property
    def perplexity(self) -> float | None:
        """exp(nats per token)."""
        return None if self.nats_per_token is None else math.exp(self.nats_per_token)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All rows on one held-out text. `config.from_dict(EvaluationReport, data)` reads `to_dict` back."""

    corpus: str
    n_tokens: int
    n_text_bytes: int
    rows: tuple[Row, ...]
    counting: str = COUNTING

    @property
    def best_baseline(self) -> Row | None:
        """The baseline with the fewest bits per byte, if any was measured."""
        baselines = [row for row in self.rows if row.kind is not Kind.MODEL]
        return min(baselines, key=lambda row: row.bits_per_byte, default=None)

    @property
    def model_beats_baselines(self) -> bool | None:
        """Whether some model is below every baseline; None when one of the two is missing."""
        models = [row.bits_per_byte for row in self.rows if row.kind is Kind.MODEL]
        best = self.best_baseline
        return None if best is None or not models else min(models) < best.bits_per_byte

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` takes it back."""
        data: dict[str, Any] = to_dict(self)
        return data

    def to_json(self) -> str:
        """`to_dict` plus each row's perplexity and the verdict, for readers that do not compute."""
        data = self.to_dict()
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain["perplexity"] = row.perplexity
        data["model_beats_baselines"] = self.model_beats_baselines
        return json.dumps(data, indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """A table with the best row first, and below it how the figures were counted."""
        lines = ["| | bits/byte | nats/token | perplexity | took | how |", "|---|---:|---:|---:|---:|---|"]
        for row in sorted(self.rows, key=lambda row: row.bits_per_byte):
            name = f"**{row.name}**" if row.kind is Kind.MODEL else row.name
            loss = "–" if row.nats_per_token is None else f"{row.nats_per_token:.4f}"
            perplexity = "–" if row.perplexity is None else f"{row.perplexity:.2f}"
            took = format_duration(row.duration_s)
            lines.append(
                f"| {name} | {row.bits_per_byte:.4f} | {loss} | {perplexity} | {took} | {row.details} |"
            )
        held_out = f"Held out: {self.corpus}, {self.n_text_bytes:,} bytes, {self.n_tokens:,} tokens."
        return "\n".join([*lines, "", f"{held_out} Counting: {self.counting}."]) + "\n"

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `evaluation.json` and `evaluation.md` into `folder`; returns their paths."""
        as_json, as_markdown = folder / "evaluation.json", folder / "evaluation.md"
        as_json.write_text(self.to_json() + "\n", encoding="utf-8")
        as_markdown.write_text(self.to_markdown(), encoding="utf-8")
        return as_json, as_markdown


def model_row(name: str, loss: HeldOutLoss) -> Row:
    """The row of a model measured by `perplexity.evaluate`."""
    return Row(
        name=name,
        kind=Kind.MODEL,
        bits_per_byte=loss.bits_per_byte,
        nats_per_token=loss.nats_per_token,
        duration_s=loss.duration_s,
        details=loss.protocol,
    )
