"""Rows of the prediction file: read strictly, as numbers, with published shapes where the row has none."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wafergpt.errors import DataError, shown
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import WSE2

REQUIRED = ("id", "metric")
MAX_ROWS = 100_000
MAX_FIELD = 10_000
_GATED = re.compile(r"llama|qwen", re.IGNORECASE)

# Published shapes by name, for rows that name a model and give no shape:
# (layers, d_model, heads, key-value heads, d_ffn, vocabulary).
KNOWN_SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "GPT-3 111M": (10, 768, 12, 12, 3072, 50257),
    "GPT-3 125M": (12, 768, 12, 12, 3072, 50257),
    "GPT-3 256M": (14, 1088, 17, 17, 4352, 50257),
    "GPT-3 350M": (24, 1024, 16, 16, 4096, 50257),
    "GPT-3 590M": (18, 1536, 12, 12, 6144, 50257),
    "GPT-3 760M": (24, 1536, 16, 16, 6144, 50257),
    "GPT-3 1.3B": (24, 2048, 16, 16, 8192, 50257),
    "GPT-3 2.7B": (32, 2560, 32, 32, 10240, 50257),
    "GPT-3 6.7B": (32, 4096, 32, 32, 16384, 50257),
    "GPT-3 13B": (40, 5120, 40, 40, 20480, 50257),
    "GPT-3 20B": (44, 6144, 64, 64, 24576, 50257),
    "GPT-3 175B": (96, 12288, 96, 96, 49152, 50257),
    "GPT-2 small": (12, 768, 12, 12, 3072, 50257),
    "GPT-2 medium": (24, 1024, 16, 16, 4096, 50257),
    "GPT-2 large": (36, 1280, 20, 20, 5120, 50257),
    "GPT-2 XL": (48, 1600, 25, 25, 6400, 50257),
    "GPT-J 6B": (28, 4096, 16, 16, 16384, 50400),
    "GPT-NeoX 20B": (44, 6144, 64, 64, 24576, 50432),
    "BERT-base": (12, 768, 12, 12, 3072, 0),
    "BERT-large": (24, 1024, 16, 16, 4096, 0),
    "LLaMA 7B": (32, 4096, 32, 32, 11008, 32000),
    "LLaMA2-7B": (32, 4096, 32, 32, 11008, 32000),
    "LLaMA2-13B": (40, 5120, 40, 40, 13824, 32000),
    "LLaMA2-70B": (80, 8192, 64, 8, 28672, 32000),
    "LLaMA3-8B": (32, 4096, 32, 8, 14336, 128256),
    "CodeLLaMA-34B": (48, 8192, 64, 8, 22016, 32000),
    "QWen2-72B": (80, 8192, 64, 8, 29568, 152064),
}


# GPT-3's own sizes (arXiv 2005.14165, table 2.1; 13B printed there with d 5140), for planning.
GPT3_SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "125M": (12, 768, 12, 12, 3072, 50257),
    "350M": (24, 1024, 16, 16, 4096, 50257),
    "760M": (24, 1536, 16, 16, 6144, 50257),
    "1.3B": (24, 2048, 24, 24, 8192, 50257),
    "2.7B": (32, 2560, 32, 32, 10240, 50257),
    "6.7B": (32, 4096, 32, 32, 16384, 50257),
    "13B": (40, 5140, 40, 40, 20560, 50257),
    "175B": (96, 12288, 96, 96, 49152, 50257),
}


def shape_of(numbers: tuple[int, int, int, int, int, int], *, gated_ffn: bool = False) -> Shape:
    """The shape of (layers, d_model, heads, key-value heads, d_ffn, vocabulary)."""
    layers, d_model, heads, kv_heads, d_ffn, vocab = numbers
    return Shape(
        n_layers=layers,
        d_model=d_model,
        d_ffn=d_ffn,
        n_heads=heads,
        n_kv_heads=kv_heads,
        vocab=vocab,
        gated_ffn=gated_ffn,
    )


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower().replace("cerebras-gpt", "gpt-3"))


_BY_KEY = {_key(name): numbers for name, numbers in KNOWN_SHAPES.items()}


@dataclass(frozen=True)
class Row:
    """One row: its columns as text (absent ones are empty)."""

    columns: Mapping[str, str]

    def text(self, name: str) -> str:
        """The column, stripped; empty when absent."""
        return (self.columns.get(name) or "").strip()

    def number(self, name: str, default: float | None = None) -> float:
        """The column as a positive number (`8->12`: the last). Raises DataError when it has none."""
        text = self.text(name).split("->")[-1].strip().replace(",", "")
        if not text:
            if default is None:
                raise DataError(f"the column {name} is empty")
            return default
        try:
            found = float(text)
        except ValueError:
            raise DataError(f"{name} = {shown(text)} is not a number") from None
        if not (math.isfinite(found) and 0 < found < 1e16):
            raise DataError(f"{name} = {shown(text)} is out of range")
        return found

    def whole(self, name: str, default: int | None = None) -> int:
        """The column as a positive whole number."""
        found = self.number(name, default)
        if found != int(found):
            raise DataError(f"{name} = {found} is not a whole number")
        return int(found)

    def shape(self) -> Shape:
        """The model's shape: the row's columns, filled in from the published shape of that name."""
        model = self.text("model")
        known = _BY_KEY.get(_key(model)) or (0, 0, 0, 0, 0, 0)
        if not (known[0] or (self.text("n_layers") and self.text("d_model"))):
            raise DataError(f"the shape of model {shown(model)} is not known: give n_layers and d_model")
        layers = self.whole("n_layers", known[0] or None)
        d_model = self.whole("d_model", known[1] or None)
        heads = self.whole("n_heads", known[2] or max(1, d_model // 64))
        kv_heads = self.whole("n_kv_heads", known[3] or heads)
        if kv_heads > heads:
            raise DataError(f"n_kv_heads = {kv_heads} is above n_heads = {heads}")
        d_ffn = self.whole("d_ff", known[4] or 4 * d_model)
        is_encoder = "bert" in model.lower() or "classifier" in self.text("task").lower()
        vocab = 0 if is_encoder else self.whole("vocab", known[5] or 50257)
        if max(layers, d_model, heads, d_ffn, vocab) > 10_000_000:
            raise DataError("a dimension of the model is above ten million")
        gated = bool(_GATED.search(model))
        return shape_of((layers, d_model, heads, kv_heads, d_ffn, vocab), gated_ffn=gated)

    def grids(self) -> dict[str, tuple[int, int]]:
        """`600x600` as `{"": (600, 600)}`, `prefill 660x660; decode 360x360` by phase. Raises DataError."""
        found: dict[str, tuple[int, int]] = {}
        for part in filter(None, (p.strip() for p in self.text("grid").split(";"))):
            match = re.fullmatch(r"(?:(prefill|decode)\s+)?(\d{1,4})\s*[xX]\s*(\d{1,4})", part)
            if match is None or not (int(match[2]) and int(match[3])):
                raise DataError(f"grid {shown(part)} is not WxH or 'prefill WxH; decode WxH'")
            short, long = sorted((int(match[2]), int(match[3])))
            if short > WSE2.width or long > WSE2.height:
                raise DataError(f"grid {shown(part)} is larger than a wafer: {WSE2.width}x{WSE2.height}")
            found[match[1] or ""] = (int(match[2]), int(match[3]))
        return found

    def grid_edge(self, phase: str, default: int | None = None) -> int:
        """Edge of the square that `phase` runs on (a rectangle counts as its longer edge)."""
        grids = self.grids()
        if phase in grids or "" in grids:
            return max(grids.get(phase) or grids[""])
        if default is None:
            raise DataError("the column grid is empty")
        return default

    def mkn(self) -> tuple[int, int, int]:
        """`1x16384x16384` as three whole numbers. Raises DataError."""
        match = re.fullmatch(r"(\d{1,7})\s*[xX]\s*(\d{1,7})\s*[xX]\s*(\d{1,7})", self.text("shape_mkn"))
        if match is None or "0" in match.groups():
            raise DataError(f"shape_mkn {shown(self.text('shape_mkn'))} is not MxKxN")
        return int(match[1]), int(match[2]), int(match[3])


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file with a header. Raises DataError for what is not one, naming the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _rows(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None


def _rows(file: object, path: Path) -> list[Row]:
    reader = csv.reader(file, strict=True)  # type: ignore[arg-type]
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise DataError(f"{path} is empty; the first line names the columns")
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise DataError(f"{path} has no column {missing[0]}; found: {shown(', '.join(header))}")
        if len(set(header)) != len(header):
            raise DataError(f"{path}: a column stands twice in the header")
        rows: list[Row] = []
        seen: set[str] = set()
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} fields, the header has {len(header)}")
            if max(map(len, cells)) > MAX_FIELD or len(rows) >= MAX_ROWS:
                raise DataError(
                    f"{where}: more than {MAX_ROWS:,} rows or a field above {MAX_FIELD:,} characters"
                )
            row = Row(dict(zip(header, cells, strict=True)))
            if not row.text("id") or row.text("id") in seen:
                raise DataError(f"{where}: the id {shown(row.text('id'))} is empty or stands twice")
            seen.add(row.text("id"))
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    return rows
