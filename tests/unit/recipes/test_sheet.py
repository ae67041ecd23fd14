"""What `wafergpt recipe` prints: each figure once, with a source, and no figure missing."""

from __future__ import annotations

import pytest

from wafergpt.recipes.cerebras_gpt import RECIPES
from wafergpt.recipes.compute_optimal import from_params
from wafergpt.recipes.scaling_law import Status
from wafergpt.recipes.sheet import Sheet, derived_sheet, published_sheet

SHEETS = [*(published_sheet(recipe) for recipe in RECIPES.values()), derived_sheet(from_params(8e6))]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.title)
def test_each_figure_once_and_sourced(sheet: Sheet) -> None:
    figures = [row.figure for row in sheet.rows]
    assert len(set(figures)) == len(figures)
    assert all(row.source and row.text for row in sheet.rows)


def test_a_published_sheet_is_whole() -> None:
    rows = {row.figure: row for row in published_sheet(RECIPES["1.3B-muP"]).rows}
    assert rows["batch in sequences"].value == 528
    assert (rows["peak LR"].value, rows["peak LR, hidden matrices"].value) == (6e-3, 7.5e-4)
    assert (rows["warm-up steps"].value, rows["decay steps"].value) == (346, 23988)
    assert rows["published training FLOPs"].value == 2.8e20
    assert rows["Pile test loss"].value == 1.984
    assert rows["predicted loss"].status is Status.DERIVED
    assert rows["logit multiplier"].value == 0.125


def test_thirteen_billion_shows_both_phases() -> None:
    sheet = published_sheet(RECIPES["13B"])
    rows = {row.figure: row for row in sheet.rows}
    assert (rows["phase 1: steps"].value, rows["phase 2: steps"].value) == (57_000, 78_223)
    assert "from 38,000 to 116,223" in rows["phase 2: steps"].text
    assert any("38,000" in note for note in sheet.notes)
